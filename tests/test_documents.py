"""Documents: what the one reader of files takes, what it refuses, and where it says the fault is."""

from __future__ import annotations

import json
import os
import string
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from va_export.documents import MAX_BYTES, Form, convert, decode, encode, json_schema, parse, read
from va_export.errors import VaExportError

Size = Annotated[int, msgspec.Meta(ge=1)]


class Part(Form, frozen=True):
    size: Size
    pair: tuple[float, float] = (0.0, 1.0)
    file: Path | None = None

    def __post_init__(self) -> None:
        if self.pair[0] > self.pair[1]:
            raise ValueError(f"pair {self.pair} falls")
        if self.size == 13:
            raise VaExportError("13 is refused", where="size", fix="take 14")


class Whole(Form, frozen=True):
    name: str
    parts: dict[str, Part] = msgspec.field(default_factory=dict)
    rows: tuple[Part, ...] | None = None


WHOLE = Whole(name="ä", parts={"a.b": Part(size=2, file=Path("/x"))}, rows=(Part(size=1, pair=(0.5, 2.0)),))


def of(content: bytes | str, *, is_toml: bool = False) -> Whole:
    data = content.encode() if isinstance(content, str) else content
    return decode(data, Whole, what="the whole", where="w", fix="mend it", is_toml=is_toml)


def test_written_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "w.json"
    path.write_bytes(encode(WHOLE))
    assert read(path, Whole, what="the whole", fix="mend it") == WHOLE
    assert path.read_bytes().startswith(b'{\n  "name": "\xc3\xa4",\n') and path.read_bytes().endswith(b"}\n")
    assert json.loads(path.read_bytes())["rows"] == [{"size": 1, "pair": [0.5, 2.0], "file": None}]
    assert encode(WHOLE, indent=None).count(b"\n") == 1 and of(encode(WHOLE, indent=None)) == WHOLE


def test_toml_by_the_files_name(tmp_path: Path) -> None:
    path = tmp_path / "w.toml"
    path.write_text('name = "a"\n[parts.x]\nsize = 3\n')
    assert read(path, Whole, what="the whole", fix="mend it") == Whole(name="a", parts={"x": Part(size=3)})


def test_a_byte_order_mark_is_no_fault() -> None:
    assert of(b'\xef\xbb\xbf{"name": "a"}') == Whole(name="a")


@pytest.mark.parametrize("content", [
    b"", b"{", b'{"name": "a"} x', b"\xff", '{"name": "a"}'.encode("utf-16"), b'{"name": "a", "name": "b"}',
    b'{"name": "a", "parts": {"x": {"size": 1}, "x": {"size": 2}}}', b"[" * 100_000, b"9" * 5000, b'{"name": "a" /**/}',
])  # fmt: skip
def test_what_is_no_json_is_refused_with_the_file(content: bytes) -> None:
    with pytest.raises(VaExportError) as caught:
        of(content)
    assert caught.value.where == "w" and caught.value.fix == "mend it"


@pytest.mark.parametrize("content", [b"name =", b'name = "a"\nname = "b"', b"x = " + b"[" * 5000, b"\xff\xfe"])
def test_what_is_no_toml_is_refused_with_the_file(content: bytes) -> None:
    with pytest.raises(VaExportError) as caught:
        of(content, is_toml=True)
    assert caught.value.where == "w"


@pytest.mark.parametrize(("content", "where"), [
    ("null", "w"),
    ("[]", "w"),
    ("{}", "w"),
    ('{"name": 3}', "w: name"),
    ('{"name": "\\ud800"}', "w: name"),
    ('{"name": "a", "\\ud800": 1}', "w"),
    ('{"name": "a", "rows": {}}', "w: rows"),
    ('{"name": "a", "rows": [{"size": 1}, {"size": true}]}', "w: rows[1].size"),
    ('{"name": "a", "rows": [{"size": 0}]}', "w: rows[0].size"),
    ('{"name": "a", "rows": [{"size": 1.5}]}', "w: rows[0].size"),
    ('{"name": "a", "rows": [{"size": 9223372036854775808}]}', "w: rows[0].size"),
    ('{"name": "a", "rows": [{"size": 1, "pair": [0]}]}', "w: rows[0].pair"),
    ('{"name": "a", "rows": [{"size": 1, "pair": [0, null]}]}', "w: rows[0].pair[1]"),
    ('{"name": "a", "rows": [{"size": 1, "pair": [0, NaN]}]}', "w: rows[0].pair[1]"),
    ('{"name": "a", "rows": [{"size": 1, "pair": [-Infinity, 0]}]}', "w: rows[0].pair[0]"),
    ('{"name": "a", "rows": [{"size": 1, "pair": [0, 1e999]}]}', "w: rows[0].pair[1]"),
    ('{"name": "a", "rows": [{"size": 1, "pair": [3, 2]}]}', "w: rows[0]"),
    ('{"name": "a", "rows": [{"size": 1, "file": 3}]}', "w: rows[0].file"),
    ('{"name": "a", "rows": [{"size": 13}]}', "w: size"),  # a check that knows no place but its own
    ('{"name": "a", "parts": {"x": {"size": 1}, "a.b": {"size": 0}, "z": {"size": 0}}}', "w: parts.a.b.size"),
    ('{"name": "a", "parts": {"x": {"size": 1}, "y": {"sise": 1}}}', "w: parts.y"),
])  # fmt: skip
def test_another_form_is_refused_with_its_place(content: str, where: str) -> None:
    with pytest.raises(VaExportError) as caught:
        of(content)
    assert caught.value.where == where and caught.value.fix, caught.value


@pytest.mark.parametrize(("content", "nearest"), [
    ('{"nam": "a"}', "'name'"),
    ('{"name": "a", "rows": [{"size": 1, "pairs": [0, 1]}]}', "'pair'"),
    ('{"name": "a", "parts": {"x": {"siz": 1}}}', "'size'"),
    ('{"name": "a", "!": 1}', "name, parts, rows"),
])  # fmt: skip
def test_an_unknown_field_is_told_the_nearest_of_its_table(content: str, nearest: str) -> None:
    with pytest.raises(VaExportError) as caught:
        of(content)
    assert nearest in caught.value.what


def test_a_word_that_is_none_of_a_few_is_told_those() -> None:
    class Choice(Form, frozen=True):
        rows: tuple[Literal["host", "graph"] | None, ...] = ()

    with refused("w: rows[1]", "'cuda'", "'graph', 'host'"):
        decode(b'{"rows": ["host", "cuda"]}', Choice, what="it", where="w", fix="mend it")


def test_a_pointer_of_git_lfs_is_called_that() -> None:
    with refused("w", "Git LFS"):
        of("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 9\n")


def test_keys_that_look_like_places_are_only_keys() -> None:
    for key in ("x` - at `$.parts[...].q", "` - at `$[9][...]", "[...]", "$", "", "a\nb"):
        with pytest.raises(VaExportError):
            of(json.dumps({"name": "a", key: 1}))
        with pytest.raises(VaExportError):
            of(json.dumps({"name": "a", "parts": {key: {"size": 0}, "n": {key: 1}}}))


def test_what_cannot_be_read_is_refused_without_reading_it(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")  # reading it would wait for ever
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    for name in ("none.json", "folder.json", "pipe.json", "large.json"):
        with pytest.raises(VaExportError) as caught:
            read(tmp_path / name, Whole, what="the whole", fix="mend it")
        assert caught.value.where == str(tmp_path / name)


def test_what_json_cannot_say_is_not_written() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            encode(Whole(name="a", rows=(Part(size=1, pair=(0.0, value)),)))
    with pytest.raises(TypeError):
        encode({"a": object()})


def test_the_schema_is_json_and_says_what_the_form_says() -> None:
    schema = json.loads(json.dumps(json_schema(Whole)))
    part = schema["$defs"]["Part"]
    assert schema["$schema"].endswith("2020-12/schema") and schema["$defs"]["Whole"]["required"] == ["name"]
    assert part["properties"]["size"] == {"type": "integer", "minimum": 1} and part["additionalProperties"] is False
    assert part["properties"]["file"]["anyOf"] == [{"type": "string"}, {"type": "null"}]


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([10**400, 1, "size"])
NAMES = st.sampled_from(["name", "parts", "rows", "size", "pair", "file"]) | st.text(string.printable)
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3))


@given(st.fixed_dictionaries({"name": st.text()}, optional={"parts": TREES, "rows": TREES}) | TREES)
def test_any_data_has_the_form_or_is_refused(data: Any) -> None:
    text = json.dumps(data)
    try:
        parse(text.encode(), what="it", where="w", fix="x")
        whole = convert(data, Whole, what="it", where="w", fix="x")
    except VaExportError:
        return
    assert of(encode(whole)) == whole
