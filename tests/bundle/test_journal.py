"""Records survive; a torn end does not count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from va_export.bundle.journal import Journal, Record
from va_export.errors import VaExportError


class A(Record, frozen=True, tag="a"):
    name: str = ""
    value: Any = None


class B(Record, frozen=True, tag="b"):
    name: str


def test_records_come_back_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    assert len(journal) == 0 and not (tmp_path / "j").exists()
    records = (A("x", [1, "ü\n"]), B("x"), A("y"))
    for record in records:
        journal.append(record)
    assert journal.of(A) == [records[0], records[2]]
    again = Journal(tmp_path / "j")
    assert again.of(A) == [records[0], records[2]] and again.of(B) == [records[1]]
    assert again.of(A, name="x") == [records[0]] and again.of(A, name="z") == again.of(B, name="y") == []
    again.append(B("z"))
    assert again.of(B) == [records[1], B("z")]
    lines = [json.loads(line) for line in (tmp_path / "j").read_text(encoding="utf-8").splitlines()]
    assert [line["kind"] for line in lines] == ["a", "b", "a", "b"] and len(Journal(tmp_path / "j")) == 4


def test_any_torn_end_is_cut_off_and_written_over(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.append(A(value=1))
    whole = (tmp_path / "j").stat().st_size
    journal.append(A(value=2))
    content = (tmp_path / "j").read_bytes()
    for length in range(whole, len(content)):
        (tmp_path / "j").write_bytes(content[:length])
        torn = Journal(tmp_path / "j")
        assert torn.of(A) == [A(value=1)], length
        torn.append(A(value=3))
        assert Journal(tmp_path / "j").of(A) == [A(value=1), A(value=3)]


@pytest.mark.parametrize("damage", [b"\0" * 40, b"\0" * 40 + b"\n", b"[1]\n", b'{"no": "kind"}\n', b"\xff\xfe\n"])
def test_what_is_no_record_ends_the_journal(tmp_path: Path, damage: bytes) -> None:
    Journal(tmp_path / "j").append(A())
    with (tmp_path / "j").open("ab") as stream:
        stream.write(damage + b'{"kind": "b", "name": "after"}\n')
    journal = Journal(tmp_path / "j")
    assert len(journal) == 1 and journal.of(A) == [A()] and journal.of(B) == []


def test_a_record_of_another_form_is_refused_when_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "j").write_text('{"kind": "a"}\n{"kind": "b", "name": 3}\n')
    journal = Journal(tmp_path / "j")
    assert journal.of(A) == [A()]
    with pytest.raises(VaExportError) as caught:
        journal.of(B)
    assert caught.value.where == f"{tmp_path / 'j'}: name" and caught.value.fix
