"""Every file of settings or results that is read or written: JSON (or TOML) ↔ a `msgspec.Struct` that is its form.

    class Point(Form, frozen=True):
        x: float
        tags: tuple[str, ...] = ()

    point = read(path, Point, what="the point", fix="make it again")   # VaExportError where: "p.json: tags[0]"
    path.write_bytes(encode(point))

A form is checked where data comes in, and nowhere else: making a Struct in code checks no types. What a form cannot say
(two fields that contradict each other) stands in its `__post_init__`, as a ValueError, which is told with its place, or
as a VaExportError, whose `fix` is kept.

Refused everywhere, whatever the form says, for other readers of JSON take them in other ways: a key that stands twice
in one object, numbers that are not finite or need more than 64 bits, and characters that are none (lone surrogates).
"""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from va_export.errors import VaExportError

# Far above the largest document, an evidence file of thousands of rows: no reader's memory is filled by a wrong file.
MAX_BYTES = 256 << 20
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_AT = re.compile(r"(.*) - at (`key` in )?`\$(.*)`", re.DOTALL)

Step = str | int
T = TypeVar("T")


class Form(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A document, or a table of one, that takes the keys it declares and no others, so that a typo is found.

    Subclasses say `frozen=True` again, which type checkers want, and `kw_only=True` where they want that.
    """


def read(path: Path, form: type[T], *, what: str, fix: str) -> T:
    """The document in a file, `.toml` or JSON, checked against its form.

    Args:
        what: the document, as errors name it: "the recipe".
        fix: what a reader can do when the file is not what it should be.

    Raises:
        VaExportError: no such file, no JSON or TOML, or another form; with the file and the place in it.
    """
    content = read_bytes(path, what=what, fix=fix)
    return decode(content, form, what=what, where=path, fix=fix, is_toml=path.suffix == ".toml")


def read_bytes(path: Path, *, what: str, fix: str) -> bytes:
    """The content of a document's file, not looked at.

    Raises:
        VaExportError: no such file, or it cannot be read.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError("there is no such file")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise OSError(f"{size} bytes are more than the {MAX_BYTES} of any such file")
        return path.read_bytes()
    except OSError as error:
        raise VaExportError(f"{what} cannot be read: {error.strerror or error}", where=path, fix=fix) from error


def decode(content: bytes, form: type[T], *, what: str, where: str | Path, fix: str, is_toml: bool = False) -> T:
    """A document from the bytes of a file; see `read`. `where` is what errors name the file."""
    return convert(
        parse(content, what=what, where=where, fix=fix, is_toml=is_toml), form, what=what, where=where, fix=fix
    )


def parse(content: bytes, *, what: str, where: str | Path, fix: str, is_toml: bool = False) -> Any:
    """A document as plain data, for the few places that must look at it before they know its form (a version).

    UTF-8, a byte order mark allowed.

    Raises:
        VaExportError: see the module.
    """
    language = "TOML" if is_toml else "JSON"
    if is_lfs_pointer(content):
        raise VaExportError(f"{what} is a pointer of Git LFS, not the file itself", where=where, fix="git lfs pull")
    try:
        text = content.decode("utf-8-sig")
        return tomllib.loads(text) if is_toml else json.loads(text, object_pairs_hook=_without_duplicates)
    except RecursionError as error:
        raise VaExportError(f"{what} is nested too deep", where=where, fix=fix) from error
    except ValueError as error:
        raise VaExportError(f"{what} is not valid {language}: {error}", where=where, fix=fix) from error


def is_lfs_pointer(content: bytes) -> bool:
    """Whether a file holds what Git LFS leaves in the place of one that it has not fetched."""
    return content.startswith(b"version https://git-lfs.github.com/spec/")


def convert(data: Any, form: type[T], *, what: str, where: str | Path, fix: str) -> T:
    """Plain data as its form.

    Raises:
        VaExportError: it has another form; the place stands behind `where`.
    """
    steps: tuple[Step, ...] = ()
    try:
        if strange := _strange_value(data, ()):
            message, steps = strange
        else:
            return msgspec.convert(data, form, dec_hook=_from_builtin)
    except msgspec.ValidationError as error:
        message, steps = _place(str(error), data, form)
    except VaExportError as error:  # a check of the form's own
        raise VaExportError(
            error.what, where=f"{where}: {error.where}" if error.where else where, fix=error.fix or fix
        ) from error
    except RecursionError:
        message = "it is nested too deep"
    place = _as_text(steps)
    raise VaExportError(
        f"{what} has another form: {place}: {message}" if place else f"{what} has another form: {message}",
        where=f"{where}: {place}" if place else where,
        fix=fix,
    )


def encode(document: Any, *, indent: int | None = 2) -> bytes:
    """UTF-8 JSON of a Struct, a dataclass or plain data: keys in the order of their declaration, a line break at the
    end; `indent` None puts it on one line.

    Raises:
        ValueError: a number that is not finite, which JSON cannot say.
    """
    plain = msgspec.to_builtins(document, enc_hook=_to_builtin)
    text = json.dumps(plain, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode(errors="replace")  # a byte of a file's name that is not UTF-8 becomes a question mark


def json_schema(form: type) -> dict[str, Any]:
    """The form as a JSON Schema (draft 2020-12), for readers in other languages."""
    schema = msgspec.json.schema(form, schema_hook=lambda _: {"type": "string"})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _from_builtin(wanted: type, value: Any) -> Any:
    if wanted is Path and isinstance(value, str):
        return Path(value)
    raise ValueError(f"Expected `{wanted.__name__}`, got `{type(value).__name__}`")


def _to_builtin(value: Any) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return table


def _strange_value(value: Any, steps: tuple[Step, ...]) -> tuple[str, tuple[Step, ...]] | None:
    """What is wrong with the first value that no document may hold, and its place; None if there is none."""
    entries: Iterable[tuple[Step, Any]] = ()
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            return "a lone surrogate, which is no character", steps
    elif isinstance(value, float):
        if not math.isfinite(value):
            return f"{value} is not a finite number", steps
    elif isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            return "a whole number beyond 64 bits", steps
    elif isinstance(value, dict):
        for key in value:
            if strange := _strange_value(key, steps):
                return f"a key: {strange[0]}", steps
        entries = value.items()
    elif isinstance(value, list | tuple):
        entries = enumerate(value)
    for step, entry in entries:
        if strange := _strange_value(entry, (*steps, step)):
            return strange
    return None


def _place(text: str, data: Any, form: type) -> tuple[str, tuple[Step, ...]]:
    """msgspec's message and the steps to its place, with the keys of mappings, which it writes as `[...]`."""
    match = _AT.fullmatch(text)
    message, is_key, path = match.groups() if match else (text, None, "")
    steps: tuple[Step, ...] = ()
    for name, index in _STEP.findall(path):
        step = _first_with(text, data, form, steps) if index == "..." else int(index) if index else name
        steps = (*steps, step)
    if message.startswith("Invalid enum value") and not is_key:
        literals = [kind.values for kind in _kinds_at(form, steps) if isinstance(kind, inspect.LiteralType)]
        message += f"; known: {', '.join(repr(value) for values in literals for value in values)}"
    if is_key:
        message = f"a key: {message}"
    if unknown := _UNKNOWN.fullmatch(message):
        known = _fields_at(form, steps)
        nearest = difflib.get_close_matches(unknown.group(1), known, n=1)
        hint = f"the nearest is {nearest[0]!r}" if nearest else f"there are {', '.join(known)}"
        message = f"unknown field {unknown.group(1)!r}; {hint}"
    return message, steps


def _first_with(text: str, data: Any, form: type, steps: Sequence[Step]) -> str:
    """The key of the mapping at `steps` whose value is at fault: left alone there, it gives the same error."""
    table = data
    with contextlib.suppress(LookupError, TypeError, AttributeError):  # a key of the file may look like msgspec's path
        for step in steps:
            table = table[step]
        for key in table:
            try:
                msgspec.convert(_with_only(data, steps, key), form, dec_hook=_from_builtin)
            except (msgspec.ValidationError, VaExportError) as error:
                if str(error) == text:
                    return str(key)
    return "..."


def _with_only(data: Any, steps: Sequence[Step], key: str) -> Any:
    """A copy of the data in which the mapping at `steps` has one key only."""
    if not steps:
        return {key: data[key]}
    changed = dict(data) if isinstance(data, Mapping) else list(data)
    changed[steps[0]] = _with_only(data[steps[0]], steps[1:], key)  # type: ignore[index]
    return changed


def _fields_at(form: type, steps: Sequence[Step]) -> list[str]:
    """The fields that the form has at a place."""
    structs = [kind for kind in _kinds_at(form, steps) if isinstance(kind, inspect.StructType)]
    return [field.encode_name for kind in structs for field in kind.fields]


def _kinds_at(form: type, steps: Sequence[Step]) -> list[inspect.Type]:
    """What the form allows at a place."""
    kinds = _alternatives(inspect.type_info(form))
    for step in steps:
        inner: list[inspect.Type] = []
        for kind in kinds:
            match kind:
                case inspect.StructType(fields=fields) | inspect.DataclassType(fields=fields):
                    inner += [field.type for field in fields if field.encode_name == step]
                case inspect.DictType(value_type=value):
                    inner.append(value)
                case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
                    inner.append(item)
                case inspect.TupleType(item_types=items) if isinstance(step, int):
                    inner += items[step : step + 1]
        kinds = [kind for entry in inner for kind in _alternatives(entry)]
    return kinds


def _alternatives(kind: inspect.Type) -> list[inspect.Type]:
    if isinstance(kind, inspect.Metadata):
        return _alternatives(kind.type)
    return list(kind.types) if isinstance(kind, inspect.UnionType) else [kind]


def _as_text(steps: Sequence[Step]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")
