"""One change to a tree of JSON or TOML: another value, a key more, a key twice, a branch gone or elsewhere."""

from __future__ import annotations

import copy
import json
import random
import tomllib
from typing import Any

from byte_mutations import change_bytes


class Table(list[list[Any]]):
    """[key, value] pairs: unlike a dict it can hold a key twice."""


class Raw(str):
    """Text that stands in the file as it is."""


_DEEP = Raw("[" * 3000 + "]" * 3000)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 1.5, -0.0, 1e-320, 1e308, 2**31, 2**53 + 1, 2**63, -(2**63), 10**30),
    *(Raw("NaN"), Raw("-Infinity"), Raw("1e999"), Raw("1" * 5000), _DEEP, Raw("{" * 3)),
    *("", " ", "x", "0", "true", "None", "\0", "\ud800", "\ufeff", "é漢🚲", "../../x", "/dev/zero", "x" * 70_000),
    *("{question}", "{0}", "%s", "<s>", "auto", "1e3", "float16", "manifest.json", "."),
    *([], Table(), [None], [[]], [0] * 300, Table([["x", None]]), Table([["", 1]]), Table([["a", Table()]])),
)


def change_json(rng: random.Random, content: bytes) -> bytes:
    """A JSON document with one change; in one of six cases its bytes are changed instead."""
    if rng.random() < 0.15:
        return change_bytes(rng, content)
    try:
        tree = json.loads(content, object_pairs_hook=lambda pairs: Table(map(list, pairs)))
    except (ValueError, RecursionError):  # an earlier change left no JSON
        return change_bytes(rng, content)
    return render_json(change_tree(rng, tree)).encode("utf-8", "surrogatepass")


def change_json_lines(rng: random.Random, content: bytes) -> bytes:
    """The same for a line of a file with a document a line, or lines in another order, twice, or cut."""
    lines = content.splitlines(keepends=True)
    if not lines or rng.random() < 0.15:
        return change_bytes(rng, content)
    at = rng.randrange(len(lines))
    match rng.randrange(8):
        case 0:
            lines.insert(rng.randrange(len(lines)), lines[at])
        case 1:
            del lines[at]
        case 2:
            rng.shuffle(lines)
        case _:
            lines[at] = change_json(rng, lines[at].rstrip(b"\n")) + b"\n"
    return b"".join(lines)


def change_toml(rng: random.Random, content: bytes) -> bytes:
    """A TOML document with one change; in one of four cases its bytes are changed instead."""
    if rng.random() < 0.25:
        return change_bytes(rng, content)
    try:
        tree = _as_tables(tomllib.loads(content.decode()))
    except (ValueError, RecursionError):
        return change_bytes(rng, content)
    changed = change_tree(rng, tree)
    if not isinstance(changed, Table):
        return render_json(changed).encode("utf-8", "surrogatepass")
    lines = (f"{_toml_key(key)} = {_render_toml(value)}\n" for key, value in changed)
    return "".join(lines).encode("utf-8", "surrogatepass")


def change_tree(rng: random.Random, tree: Any) -> Any:
    """One change anywhere in the tree; numbers and strings are also changed a little."""
    root = [tree]
    slots = list(_slots(root))
    holder, at = rng.choice(slots)
    before = holder[at]
    action = rng.randrange(10)
    if action < 3:
        holder[at] = copy.deepcopy(rng.choice(_VALUES))
    elif action < 5:
        holder[at] = _near(rng, before)
    elif action == 5:
        other, place = rng.choice(slots)
        holder[at] = copy.deepcopy(other[place])
    elif action == 6:
        holder[at] = rng.choice(([before], Table([["x", before]]), [before, before]))
    elif action == 7:
        branches = [holder[at] for holder, at in slots if isinstance(holder[at], list) and holder[at]]
        if branches:
            branch = rng.choice(branches)
            del branch[rng.randrange(len(branch))]
    else:
        tables = [holder[at] for holder, at in slots if isinstance(holder[at], Table) and holder[at]]
        if tables:
            table = rng.choice(tables)
            entry = rng.choice(table)
            if action == 8:
                table.append([rng.choice((entry[0], f"{entry[0]}s", "", "x", "\0")), copy.deepcopy(entry[1])])
            else:
                entry[0] = rng.choice((entry[0].upper(), f"{entry[0]}_", "", "é", rng.choice(table)[0]))
    return root[0]


def render_json(tree: Any) -> str:
    """The text of a tree, keys that stand twice and text that is no JSON included."""
    if isinstance(tree, Raw):
        return str(tree)
    if isinstance(tree, Table):
        return "{" + ",".join(f"{json.dumps(str(key))}:{render_json(value)}" for key, value in tree) + "}"
    if isinstance(tree, list):
        return "[" + ",".join(map(render_json, tree)) + "]"
    return json.dumps(tree, ensure_ascii=False)


def _slots(holder: list[Any]) -> Any:
    """(list, index) of every value."""
    for at, value in enumerate(holder):
        if isinstance(holder, Table):
            yield value, 1
            value = value[1]
        else:
            yield holder, at
        if isinstance(value, list):
            yield from _slots(value)


def _near(rng: random.Random, value: Any) -> Any:
    """A value of the same kind that is not far off, or the same in another type."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return rng.choice((value + 1, value - 1, -value, value * 2, value // 2, value * 1000, float(value), str(value)))
    if isinstance(value, str) and not isinstance(value, Raw):
        at = rng.randrange(len(value) + 1)
        letter = rng.choice("x0 _/\\\0\n{}[]<>é\ud8003-.")
        return rng.choice(
            (value[:at] + letter + value[at:], value[:at], value[at:], value.upper(), value * 2, [value], value[::-1])
        )
    if isinstance(value, list):
        return rng.choice((value[:-1], value[1:], value + value[:1], value[::-1], value * 3))
    return value


def _as_tables(value: Any) -> Any:
    if isinstance(value, dict):
        return Table([key, _as_tables(entry)] for key, entry in value.items())
    return [_as_tables(entry) for entry in value] if isinstance(value, list) else value


def _toml_key(key: Any) -> str:
    return json.dumps(str(key))


def _render_toml(value: Any) -> str:
    if isinstance(value, Table):
        return "{" + ", ".join(f"{_toml_key(key)} = {_render_toml(entry)}" for key, entry in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_render_toml, value)) + "]"
    if isinstance(value, Raw):
        return {"NaN": "nan", "-Infinity": "-inf"}.get(value, str(value))
    return json.dumps(value, ensure_ascii=False)
