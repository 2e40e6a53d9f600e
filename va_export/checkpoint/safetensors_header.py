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
from typing import Any

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
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies and what its header says about it; `offset` is that of its first byte in the file."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Parse one file's header and check the file's length against it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if size < 8 or header_size > _MAX_HEADER_BYTES:
            raise VaExportError(
                f"not a safetensors file: {size} bytes, of which its header would take {header_size}",
                where=path,
                fix="download the file again (a Git LFS pointer is a small text file)",
            )
        raw = file.read(header_size)
    if len(raw) < header_size:
        raise _truncated(path, expected=8 + header_size, actual=size)
    try:
        header = json.loads(raw, object_pairs_hook=_reject_duplicates)
        header.pop("__metadata__", None)
        data_size = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
        entries = {name: _parse_entry(path, name, entry, 8 + header_size) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise VaExportError(f"the safetensors header is malformed: {error}", where=path) from error
    if size < 8 + header_size + data_size:
        raise _truncated(path, expected=8 + header_size + data_size, actual=size)
    if size > 8 + header_size + data_size:
        raise VaExportError(
            f"the file is {size} bytes, its header accounts for {8 + header_size + data_size}",
            where=path,
            fix="download the file again",
        )
    return entries


def _parse_entry(path: Path, name: str, entry: dict[str, Any], data_start: int) -> TensorEntry:
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"tensor {name} has the unknown type {entry['dtype']}")
    dtype = _DTYPES[entry["dtype"]]
    shape = tuple(int(length) for length in entry["shape"])
    begin, end = entry["data_offsets"]
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"tensor {name} of shape {list(shape)} and type {entry['dtype']} has {end - begin} bytes")
    if begin < 0:
        raise ValueError(f"tensor {name} begins {-begin} bytes before the data")
    return TensorEntry(path, shape, dtype, data_start + begin)


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
