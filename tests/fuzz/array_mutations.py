"""One change to a file of arrays: .npz (a zip of .npy) or safetensors."""

from __future__ import annotations

import io
import random
import warnings
import zipfile

import numpy as np
from byte_mutations import INTEGERS, change_bytes
from tree_mutations import change_json

_TYPES = ("|O", "<f4", ">f4", "<f8", "<f2", "<i8", "|b1", "<U7", "<M8[s]", "|V9", "<c16", "<f99", "x", "|S0")
_SHAPES = (
    "()",
    "(0,)",
    "(-1,)",
    "(1,)",
    "(2, 3)",
    "(1000000000000,)",
    "(99999, 99999, 99999)",
    "(1.5,)",
    "None",
    "[2]",
)
_NUMBERS = (0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e30, 2.0**62)


def change_npz(rng: random.Random, content: bytes) -> bytes:
    """A member gone, twice, renamed, with another header, with other values, or damaged; or the archive's own bytes."""
    if rng.random() < 0.2:
        return change_bytes(rng, content)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
    except Exception:  # an earlier change left no archive
        return change_bytes(rng, content)
    if not members:
        return change_bytes(rng, content)
    at = rng.randrange(len(members))
    name, member = members[at]
    match rng.randrange(8):
        case 0:
            del members[at]
        case 1:
            members.insert(rng.randrange(len(members)), (name, rng.choice(members)[1]))
        case 2:
            members[at] = (rng.choice((f"x{name}", "../x.npy", "x", "a/", name.upper())), member)
        case 3:
            members[at] = (name, change_bytes(rng, member))
        case 4:
            members[at] = (name, rng.choice(members)[1])
        case 5:
            members[at] = (name, _another_header(rng, member))
        case _:
            members[at] = (name, _another_array(rng, member))
    packed, method = io.BytesIO(), rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with warnings.catch_warnings(), zipfile.ZipFile(packed, "w", method, compresslevel=1) as archive:
        warnings.simplefilter("ignore")  # of a name that stands twice
        for name, member in members:
            archive.writestr(name, member)
    return packed.getvalue()


def _another_header(rng: random.Random, member: bytes) -> bytes:
    """The .npy header with another type or shape, its length kept right."""
    kind, order, shape = rng.choice(_TYPES), rng.choice(("True", "False", "3")), rng.choice(_SHAPES)
    text = f"{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {shape}, }}"
    body = member[10 + int.from_bytes(member[8:10], "little") :]
    return member[:8] + len(text).to_bytes(2, "little") + text.encode() + body


def _another_array(rng: random.Random, member: bytes) -> bytes:
    """The array with other values, another type or another shape."""
    try:
        array = np.load(io.BytesIO(member), allow_pickle=False)
        with np.errstate(all="ignore"):
            match rng.randrange(5):
                case 0:
                    array = array.astype(rng.choice(("f4", "f8", "f2", "i8", "i4", "u1", "?", "U3", "c8")))
                case 1:
                    array = array.reshape(rng.choice(((-1,), (1, *array.shape), (*array.shape, 1))))
                case 2:
                    array = array[: len(array) // 2] if array.ndim else np.repeat(array, 3)
                case 3:
                    array = np.concatenate([array, array]) if array.ndim else array[None]
                case _:
                    array = array.copy()
                    array.flat[rng.randrange(max(1, array.size)) :: rng.choice((1, 7, 10**6))] = rng.choice(_NUMBERS)
    except Exception:  # not every array can be changed in every way, nor every member be read any more
        return change_bytes(rng, member)
    packed = io.BytesIO()
    np.save(packed, array, allow_pickle=False)
    return packed.getvalue()


def change_safetensors(rng: random.Random, content: bytes) -> bytes:
    """The header's length, its JSON (with the length kept right), or the bytes of the tensors."""
    size = int.from_bytes(content[:8], "little")
    header, body = content[8 : 8 + size], content[8 + size :]
    match rng.randrange(8):
        case 0:
            number = rng.choice((*INTEGERS, size + 1, max(0, size - 1)))
            return number.to_bytes(8, "little") + content[8:]
        case 1:
            return change_bytes(rng, content)
        case 2:
            return content[: 8 + size] + change_bytes(rng, body)
        case 3:
            at = rng.randrange(max(1, len(body) // 4)) * 4
            return content[: 8 + size] + body[:at] + rng.choice((b"\0\0\xc0\x7f", b"\xff" * 4)) + body[at + 4 :]
        case _:
            header = change_json(rng, header)
            return len(header).to_bytes(8, "little") + header + body
