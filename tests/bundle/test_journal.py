"""Records survive; a torn end does not count."""

from __future__ import annotations

from pathlib import Path

import pytest

from va_export.bundle.journal import Journal


def test_records_come_back_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    assert len(journal) == 0 and not (tmp_path / "j").exists()
    journal.append("a", name="x", value=[1, "ü\n"])
    journal.append("b", name="x")
    journal.append("a", name="y")
    again = Journal(tmp_path / "j")
    assert [record["kind"] for record in again] == ["a", "b", "a"]
    assert again.of("a", name="x") == [{"kind": "a", "name": "x", "value": [1, "ü\n"]}]
    assert [record["name"] for record in again.of("a")] == ["x", "y"]
    again.append("c")
    assert len(Journal(tmp_path / "j")) == 4


def test_any_torn_end_is_cut_off_and_written_over(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.append("a", number=1)
    whole = (tmp_path / "j").stat().st_size
    journal.append("a", number=2)
    content = (tmp_path / "j").read_bytes()
    for length in range(whole, len(content)):
        (tmp_path / "j").write_bytes(content[:length])
        torn = Journal(tmp_path / "j")
        assert [record["number"] for record in torn] == [1], length
        torn.append("a", number=3)
        assert [record["number"] for record in Journal(tmp_path / "j")] == [1, 3]


@pytest.mark.parametrize("damage", [b"\0" * 40, b"\0" * 40 + b"\n", b"[1]\n", b'{"no": "kind"}\n', b"\xff\xfe\n"])
def test_what_is_no_record_ends_the_journal(tmp_path: Path, damage: bytes) -> None:
    Journal(tmp_path / "j").append("a")
    with (tmp_path / "j").open("ab") as stream:
        stream.write(damage + b'{"kind": "after"}\n')
    assert [record["kind"] for record in Journal(tmp_path / "j")] == ["a"]
