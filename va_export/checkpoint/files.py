"""A checkpoint directory in safetensors, read one tensor at a time.

`Checkpoint.open` reads every header and no weights: each shard must exist, be as long as its header says and agree with
the index. `Checkpoint.rows` reads some rows of a tensor, `Checkpoint.tensor` all of them and refuses values that are
not finite. Files are read, not mapped: pages of a mapping count as this process's memory, those of the page cache do
not. Pickled weights are never opened: unpickling runs code.

Format: https://huggingface.co/docs/safetensors (8 bytes little-endian header length, JSON header, data).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from va_export.checkpoint.json_files import read_json
from va_export.checkpoint.safetensors_header import TensorEntry
from va_export.checkpoint.weight_files import check_entries, read_weight_files, refuse_by_what_is_there
from va_export.errors import VaExportError

CONFIG_FILE = "config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")

_WEIGHT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_LEAST_LOOKED_AT, _PLACES, _PLACE_BYTES, _MOST_EMPTY = 1 << 20, 64, 1 << 12, 0.25
_READ_BYTES = 1 << 30  # Linux reads no more than 2 GB at once
_FINITE_CHECK_ELEMENTS = 1 << 24  # 16 M at a time, so that the mask of a 700 MB embedding is never held at once


@dataclass(frozen=True)
class CheckpointFile:
    """One file of weights: its path and its size in bytes."""

    path: Path
    size: int


class Checkpoint:
    """An opened checkpoint directory; make one with `Checkpoint.open`."""

    def __init__(
        self,
        directory: Path,
        config: dict[str, Any],
        entries: Mapping[str, TensorEntry],
        files: tuple[CheckpointFile, ...],
    ) -> None:
        self.directory = directory
        self.config = config
        self._entries = dict(entries)
        self._files = files
        self._handles: dict[Path, BinaryIO] = {}
        self.notes: list[str] = []
        self._finite: set[str] = set()  # those that were looked through

    @classmethod
    def open(cls, directory: Path | str) -> Checkpoint:
        """Read `config.json` and all headers of the checkpoint in `directory`.

        Raises:
            VaExportError: no such directory, no config or weights, a missing, truncated or malformed shard, one that
                was reserved and did not arrive, an index that disagrees with its shards, or a tensor that is stored
                twice.
        """
        directory = Path(directory)
        if not directory.is_dir():
            raise VaExportError(
                "there is no such checkpoint directory",
                where=directory,
                fix="give the directory that holds config.json and *.safetensors",
            )
        if not (directory / CONFIG_FILE).is_file():
            refuse_by_what_is_there(directory)
        check_entries(directory)
        config = read_json(directory / CONFIG_FILE, what="checkpoint configuration")
        shards, entries = read_weight_files(directory)
        files = tuple(CheckpointFile(path, path.stat().st_size) for path in shards)
        for file in files:
            _check_arrived(file)
        return cls(directory, config, entries, files)

    def note(self, text: str) -> None:
        """Keep something that is worth telling and no reason to stop."""
        if text not in self.notes:
            self.notes.append(text)

    def names(self) -> tuple[str, ...]:
        """All tensor names, sorted."""
        return tuple(sorted(self._entries))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of tensor `name`, from the header."""
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Element type of tensor `name`, from the header."""
        return self._entry(name).dtype

    def files(self) -> tuple[CheckpointFile, ...]:
        """The weight files and their sizes."""
        return self._files

    @property
    def has_tokenizer(self) -> bool:
        """Whether a `tokenizer.json`, a SentencePiece `tokenizer.model` or a byte-level `vocab.json` is there."""
        return any((self.directory / name).is_file() for name in TOKENIZER_FILES)

    def tensor(self, name: str) -> torch.Tensor:
        """Read tensor `name`.

        Raises:
            VaExportError: no such tensor, not a floating-point one, it cannot be read, or it holds NaN or infinity.
        """
        entry = self._entry(name)
        tensor = self.rows(name, 0, entry.shape[0] if entry.shape else 1).reshape(entry.shape)
        bad = 0 if name in self._finite else _count_non_finite(tensor)
        if bad:
            raise VaExportError(
                f"tensor {name} holds {bad} NaN or infinite values of {tensor.numel()}",
                where=entry.file,
                fix="download the checkpoint again, or take an earlier one if it was trained here",
            )
        self._finite.add(name)
        return tensor

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read rows [start, stop) of tensor `name`, values as they are; a scalar has one row. Any thread may.

        Raises:
            VaExportError: no such tensor, not a floating-point one, or it cannot be read.
        """
        entry = self._entry(name)
        if entry.dtype not in _WEIGHT_DTYPES:
            raise VaExportError(
                f"tensor {name} is {entry.dtype}, not a floating-point weight",
                where=entry.file,
                fix="use the checkpoint in bfloat16, float16 or float32; quantised checkpoints are not read",
            )
        row_shape = entry.shape[1:]
        row_bytes = math.prod(row_shape) * entry.dtype.itemsize
        if not (stop - start) * row_bytes:
            return torch.empty((stop - start, *row_shape), dtype=entry.dtype)
        result = uninitialised((stop - start, *row_shape), entry.dtype)
        content = memoryview(result.reshape(-1).view(torch.uint8).numpy().data)
        self._read(entry.file, entry.offset + start * row_bytes, content, name)
        return result

    def release(self) -> None:
        """Close the files until the next read."""
        self._handles.clear()

    def _read(self, file: Path, offset: int, content: memoryview, name: str) -> None:
        """Fill `content` from `offset` on."""
        try:
            handle = self._handles.get(file)
            if handle is None:  # of two threads that come here at once one opens it for nothing
                handle = self._handles.setdefault(file, file.open("rb", buffering=0))
            while len(content):
                count = os.preadv(handle.fileno(), [content[:_READ_BYTES]], offset)
                if not count:
                    raise VaExportError(
                        f"tensor {name} cannot be read: the file ended before it",
                        where=file,
                        fix="the file was changed while it was read: run again, or download it again",
                    )
                content, offset = content[count:], offset + count
        except OSError as error:
            raise VaExportError(
                f"tensor {name} cannot be read: {error.strerror or error}", where=file, fix="check the disk"
            ) from error

    def _entry(self, name: str) -> TensorEntry:
        try:
            return self._entries[name]
        except KeyError:
            raise VaExportError(f"the checkpoint has no tensor {name}", where=self.directory) from None


def uninitialised(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor to be filled, in NumPy's memory: that asks for huge pages, and so a read into new memory is not slower
    than one into old (with PyTorch's it is, up to five times)."""
    return torch.from_numpy(np.empty(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).reshape(tuple(shape))


def _check_arrived(file: CheckpointFile) -> None:
    """Look at places all over a file. Downloads that go on in several places at once reserve all of it first: it then
    has its full length and a whole header, and zeros for weights. (A few matrices of zeros are no fault: models that
    were made deeper have them.)"""
    if file.size < _LEAST_LOOKED_AT:
        return
    step = file.size // _PLACES
    with file.path.open("rb") as content:
        looked_at = [os.pread(content.fileno(), _PLACE_BYTES, at) for at in range(0, step * _PLACES, step)]
    empty = sum(not any(part) for part in looked_at)
    if empty > _MOST_EMPTY * _PLACES:
        raise VaExportError(
            f"{empty} of {_PLACES} places in the file hold only zeros: its download has not ended",
            where=file.path,
            fix="download it again",
        )


def _count_non_finite(tensor: torch.Tensor) -> int:
    """Number of NaN and infinite elements."""
    flat = tensor.reshape(-1)
    bad = 0
    for start in range(0, len(flat), _FINITE_CHECK_ELEMENTS):
        part = flat[start : start + _FINITE_CHECK_ELEMENTS]
        bad += int((~torch.isfinite(part)).sum())
    return bad
