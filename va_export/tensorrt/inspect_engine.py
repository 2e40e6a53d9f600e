"""Prove from an engine's file that it holds a plugin.

Deserializing needs a GPU; this reads the bytes. In the engines of TensorRT-RTX 1.7 a plugin layer is stored,
once for each optimisation profile, as the record

    name · version · namespace · number of fields · (field name · count · type · data)… · "V3ONE"

where a string is `13 80 01 00`, length (uint64), `01 80 0c 80 01 00`, length again, bytes; an int32 is `07 80
01 00` and four bytes; and data are `01 80 03 80 01 00`, length (uint64), bytes. (Found by building engines of
1 to 5 layers with
1 and 2 profiles: always layers × profiles records.) Counting asks only for the three strings in a row, so
that a change of the tags between them does not matter; the fields are read when they have just this layout.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from va_export.errors import VaExportError

_STRING, _INT32, _DATA = b"\x13\x80\x01\x00", b"\x07\x80\x01\x00", b"\x01\x80\x03\x80\x01\x00"
_MARK = b"\x01\x80\x0c\x80\x01\x00"
_FIELD_FORMATS = {"FP32": "f", "INT32": "i", "INT64": "q", "FP64": "d", "INT8": "b", "INT16": "h"}


@dataclass(frozen=True)
class PluginRecord:
    """One plugin layer of one optimisation profile, as the engine stores it.

    Attributes:
        offset: where in the file the name stands.
        fields: the plugin's serialized fields; empty if they are stored in an unknown way.
    """

    name: str
    version: str
    namespace: str
    offset: int
    fields: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


def find_plugin_records(engine_path: Path, name: str, version: str, namespace: str) -> tuple[PluginRecord, ...]:
    """Every record of that plugin in an engine file; layers × profiles of them in RTX 1.7.

    Raises:
        VaExportError: the file is missing or empty.
    """
    strings = [re.escape(struct.pack("<Q", len(text)) + text.encode()) for text in (name, version, namespace)]
    pattern = re.compile(rb".{0,32}?".join(strings), re.DOTALL)
    try:
        with engine_path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return tuple(
                PluginRecord(name, version, namespace, match.start() + 8, _read_fields(data, match.end()))
                for match in pattern.finditer(data)
            )
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise VaExportError(f"the engine cannot be read: {error}", where=engine_path) from error


def _read_fields(data: mmap.mmap, position: int) -> dict[str, tuple[float, ...]]:
    reader = _Reader(data, position)
    fields: dict[str, tuple[float, ...]] = {}
    try:
        for _ in range(reader.int32()):
            name = reader.string()
            count = reader.int32()
            code = _FIELD_FORMATS[reader.string()]
            fields[name] = struct.unpack(f"<{count}{code}", reader.data())
    except (ValueError, KeyError, struct.error):
        return {}
    return fields


class _Reader:
    """Reads tagged values one after another; ValueError where the tag is another."""

    def __init__(self, data: mmap.mmap, position: int) -> None:
        self._data = data
        self._position = position

    def int32(self) -> int:
        return int(struct.unpack("<i", self._take(_INT32, 4))[0])

    def string(self) -> str:
        size = struct.unpack("<Q", self._take(_STRING, 8))[0]
        if struct.unpack("<Q", self._take(_MARK, 8))[0] != size:
            raise ValueError("a string's two lengths differ")
        return self._take(b"", size).decode()

    def data(self) -> bytes:
        return self._take(b"", struct.unpack("<Q", self._take(_DATA, 8))[0])

    def _take(self, tag: bytes, size: int) -> bytes:
        start = self._position + len(tag)
        if self._data[self._position : start] != tag or start + size > len(self._data):
            raise ValueError("not the expected tag")
        self._position = start + size
        return self._data[start : self._position]
