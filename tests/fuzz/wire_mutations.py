"""One change to a protobuf message (an ONNX graph, a SentencePiece model), whose schema need not be known: fields are
walked on the wire, and what is delimited by a length is taken for a message where it reads as one.

Wire format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from byte_mutations import INTEGERS, change_bytes

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_WORDS = (b"", b"x", b"\xff\xfe", b"../../x", b"/etc/passwd", b"Constant", b"\0", b"ai.onnx", b"x" * 5000)


@dataclass(frozen=True)
class Field:
    """One field: its number, its wire type, and the value, a number or the bytes."""

    number: int
    wire: int
    value: int | bytes


def change_message(rng: random.Random, content: bytes) -> bytes:
    """One change somewhere in a message or in one of those within it."""
    fields = read_fields(content)
    if not fields or rng.random() < 0.05:
        return change_bytes(rng, content)
    at = rng.randrange(len(fields))
    field = fields[at]
    if isinstance(field.value, bytes) and rng.random() < 0.8 and read_fields(field.value):
        fields[at] = replace(field, value=change_message(rng, field.value))
        return write_fields(fields)
    match rng.randrange(7):
        case 0:
            del fields[at]
        case 1:
            fields.insert(rng.randrange(len(fields) + 1), field)
        case 2:
            fields[at] = replace(field, number=max(1, field.number + rng.choice((-1, 1, 7, 1000))))
        case 3:
            other = rng.randrange(len(fields))
            fields[at], fields[other] = replace(field, value=fields[other].value, wire=fields[other].wire), fields[at]
        case 4:  # a length that is not so
            raw = write_fields([field])
            cut = rng.randrange(len(raw))
            return (
                write_fields(fields[:at])
                + raw[:cut]
                + rng.randbytes(1)
                + raw[cut + 1 :]
                + write_fields(fields[at + 1 :])
            )
        case _:
            fields[at] = replace(field, value=_another(rng, field))
    return write_fields(fields)


def _another(rng: random.Random, field: Field) -> int | bytes:
    if isinstance(field.value, bytes):
        if field.wire != _DELIMITED:
            return rng.randbytes(len(field.value))
        return rng.choice((*_WORDS, change_bytes(rng, field.value), change_bytes(rng, field.value)))
    return rng.choice((*INTEGERS, field.value + 1, max(0, field.value - 1), rng.randrange(24)))


def read_fields(content: bytes) -> list[Field]:
    """The fields of a message; none where the bytes are no message."""
    fields: list[Field] = []
    at = 0
    try:
        while at < len(content):
            key, at = _read_varint(content, at)
            number, wire = key >> 3, key & 7
            value: int | bytes
            if wire == _VARINT:
                value, at = _read_varint(content, at)
            elif wire in (_FIXED64, _FIXED32, _DELIMITED):
                size = 8 if wire == _FIXED64 else 4
                if wire == _DELIMITED:
                    size, at = _read_varint(content, at)
                value, at = content[at : at + size], at + size
            else:
                return []
            if not number or at > len(content):
                return []
            fields.append(Field(number, wire, value))
    except IndexError:
        return []
    return fields


def write_fields(fields: list[Field]) -> bytes:
    """The bytes of a message."""
    parts: list[bytes] = []
    for field in fields:
        parts.append(_varint(field.number << 3 | field.wire))
        if isinstance(field.value, int):
            parts.append(_varint(field.value))
        else:
            parts += [_varint(len(field.value)) if field.wire == _DELIMITED else b"", field.value]
    return b"".join(parts)


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise IndexError


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
