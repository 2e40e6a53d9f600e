"""The header of one safetensors file, and whether the file is as long as the header says.

Format: https://huggingface.co/docs/safetensors (8 bytes little-endian header length, JSON header, data).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch

from va_export.errors import VaExportError

_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library

_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "I64": torch.int64,
    "U64": torch.uint64,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_SMALLER_THAN_A_BYTE = ("F4", "F6_E2M3", "F6_E3M2")
_Length = Annotated[int, msgspec.Meta(ge=0, le=1 << 48)]


class _Entry(msgspec.Struct, frozen=True):
    """What a header says about a tensor; offsets count from the first byte of the data."""

    dtype: str
    shape: list[_Length]
    data_offsets: tuple[_Length, _Length]


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies and what its header says about it; `offset` is that of its first byte in the file."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Parse one file's header and check the file's length against it.

    Raises:
        VaExportError: the file cannot be read, is cut off, or its header contradicts itself.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            raw = file.read(header_size) if header_size <= _MAX_HEADER_BYTES else b""
    except OSError as error:
        raise VaExportError(
            f"the file cannot be read: {error.strerror or error}", where=path, fix="check its permissions and the disk"
        ) from error
    if size < 8 or header_size > _MAX_HEADER_BYTES:
        raise VaExportError(
            f"not a safetensors file: {size} bytes, of which its header would take {header_size}",
            where=path,
            fix="download the file again (a Git LFS pointer is a small text file)",
        )
    if len(raw) < header_size:
        raise _truncated(path, expected=8 + header_size, actual=size)
    try:
        header = _parse(raw)
        entries = {name: _located(path, name, entry, 8 + header_size) for name, entry in header.items()}
        data_size = _data_size(header)
    except (ValueError, RecursionError) as error:
        raise VaExportError(
            f"the safetensors header is malformed: {error}", where=path, fix="download the file again"
        ) from error
    if size < 8 + header_size + data_size:
        raise _truncated(path, expected=8 + header_size + data_size, actual=size)
    if size > 8 + header_size + data_size:
        raise VaExportError(
            f"the file is {size} bytes, its header accounts for {8 + header_size + data_size}",
            where=path,
            fix="download the file again",
        )
    return entries


def _parse(raw: bytes) -> dict[str, _Entry]:
    """Tensor name → entry."""
    header = json.loads(raw.decode("utf-8"), object_pairs_hook=_reject_duplicates)
    if not isinstance(header, dict):
        raise ValueError("it is no object of names")
    header.pop("__metadata__", None)
    entries = {}
    for name, entry in header.items():
        try:
            entries[name] = msgspec.convert(entry, _Entry)
        except msgspec.ValidationError as error:
            raise ValueError(f"tensor {name}: {error}") from error
    return entries


def _located(path: Path, name: str, entry: _Entry, data_start: int) -> TensorEntry:
    if entry.dtype in _SMALLER_THAN_A_BYTE:
        raise VaExportError(
            f"tensor {name} is of type {entry.dtype}: the checkpoint is quantised; quantised weights are not read",
            where=path,
            fix="use the checkpoint that was quantised: the original in bfloat16, float16 or float32",
        )
    if entry.dtype not in _DTYPES:
        raise ValueError(f"tensor {name} has the unknown type {entry.dtype}")
    dtype = _DTYPES[entry.dtype]
    begin, end = entry.data_offsets
    if end - begin != math.prod(entry.shape) * dtype.itemsize:
        raise ValueError(f"tensor {name} of shape {entry.shape} and type {entry.dtype} has {end - begin} bytes")
    return TensorEntry(path, tuple(entry.shape), dtype, data_start + begin)


def _data_size(header: Mapping[str, _Entry]) -> int:
    """Bytes of data; each tensor must begin where another ends, as the format asks."""
    at = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1].data_offsets):
        begin, end = entry.data_offsets
        if begin != at:
            raise ValueError(f"tensor {name} begins at byte {begin} of the data, where {at} bytes lie before it")
        at = end
    return at


def header_sha256(path: Path) -> str:
    """Hex digest of a file's header, length field included: which tensors it holds, and where."""
    with path.open("rb") as file:
        size = file.read(8)
        return hashlib.sha256(size + file.read(min(int.from_bytes(size, "little"), _MAX_HEADER_BYTES))).hexdigest()


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    duplicate = next((key for key in keys if keys.count(key) > 1), None) if len(set(keys)) < len(keys) else None
    if duplicate is not None:
        raise ValueError(f"{duplicate} is there twice")
    return dict(pairs)


def _truncated(path: Path, *, expected: int, actual: int) -> VaExportError:
    return VaExportError(
        f"the file is truncated: {actual} bytes of {expected}", where=path, fix="download the file again"
    )
