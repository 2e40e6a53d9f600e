"""A checkpoint directory in safetensors, read one tensor at a time.

`Checkpoint.open` reads every header and no weights: each shard must exist, be as long as its header says and agree with
the index. `Checkpoint.rows` reads some rows of a tensor, `Checkpoint.tensor` all of them and refuses values that are
not finite. Files are read, not mapped: pages of a mapping count as this process's memory, those of the page cache do
not. Pickled weights are never opened: unpickling runs code.

Format: https://huggingface.co/docs/safetensors (8 bytes little-endian header length, JSON header, data).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from va_export.checkpoint.safetensors_header import TensorEntry, read_header
from va_export.errors import VaExportError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")

_WEIGHT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
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
        self._finite: set[str] = set()  # those that were looked through

    @classmethod
    def open(cls, directory: Path | str) -> Checkpoint:
        """Read `config.json` and all headers of the checkpoint in `directory`.

        Raises:
            VaExportError: no such directory, no config or weights, a missing, truncated or malformed shard, an index
                that disagrees with its shards, or a tensor that is stored twice.
        """
        directory = Path(directory)
        if not directory.is_dir():
            raise VaExportError(
                "there is no such checkpoint directory",
                where=directory,
                fix="give the directory that holds config.json and *.safetensors",
            )
        config = read_json(directory / "config.json", what="checkpoint configuration")
        index = _read_index(directory)
        if index is None:
            shards = [directory / SINGLE_FILE]
        else:
            shards = [directory / name for name in sorted(set(index.values()))]
        entries = _read_entries(shards)
        if index is not None:
            _check_index(directory, index, entries)
        files = tuple(CheckpointFile(path, path.stat().st_size) for path in shards)
        return cls(directory, config, entries, files)

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
        """Read rows [start, stop) of tensor `name`, values as they are; a scalar has one row.

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
        result = torch.empty((stop - start, *row_shape), dtype=entry.dtype)
        if result.numel():
            content = memoryview(result.reshape(-1).view(torch.uint8).numpy().data)
            self._read(entry.file, entry.offset + start * row_bytes, content, name)
        return result

    def release(self) -> None:
        """Close the files until the next read."""
        self._handles.clear()

    def _read(self, file: Path, offset: int, content: memoryview, name: str) -> None:
        """Fill `content` from `offset` on."""
        try:
            if file not in self._handles:
                self._handles[file] = file.open("rb", buffering=0)
            descriptor = self._handles[file].fileno()
            while len(content):
                count = os.preadv(descriptor, [content[:_READ_BYTES]], offset)
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


def read_json(path: Path, *, what: str) -> dict[str, Any]:
    """Read a JSON object, or say which file is missing or broken; `what` names its role."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise VaExportError(f"the {what} is missing", where=path, fix="complete the checkpoint directory") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise VaExportError(f"the {what} is not readable JSON: {error}", where=path, fix="download it again") from error
    if not isinstance(content, dict):
        raise VaExportError(
            f"the {what} is a JSON {type(content).__name__}, not an object", where=path, fix="download it again"
        )
    return content


def _read_index(directory: Path) -> dict[str, str] | None:
    """Tensor name → shard file name, or None for a checkpoint of one file."""
    if (directory / SINGLE_FILE).is_file():
        return None
    if not (directory / INDEX_FILE).is_file():
        pickles = sorted(path.name for path in directory.glob("*.bin"))
        if pickles:
            raise VaExportError(
                f"the checkpoint has only pickled weights ({', '.join(pickles[:3])})",
                where=directory,
                fix="convert it to safetensors; pickles can run code and are not opened",
            )
        raise VaExportError(
            f"neither {SINGLE_FILE} nor {INDEX_FILE} is there",
            where=directory,
            fix="give the directory that holds the weights",
        )
    weight_map = read_json(directory / INDEX_FILE, what="index of shards").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise VaExportError("the index of shards has no weight_map of names to files", where=directory / INDEX_FILE)
    outside = sorted({name for name in weight_map.values() if Path(name).name != name})
    if outside:
        raise VaExportError(
            f"the index names a shard outside its directory: {outside[0]}", where=directory / INDEX_FILE
        )
    return weight_map


def _read_entries(shards: list[Path]) -> dict[str, TensorEntry]:
    missing = [path.name for path in shards if not path.is_file()]
    if missing:
        raise VaExportError(
            f"{len(missing)} of {len(shards)} shards are missing: {', '.join(missing)}",
            where=shards[0].parent,
            fix="download the missing files",
        )
    entries: dict[str, TensorEntry] = {}
    for path in shards:
        for name, entry in read_header(path).items():
            if name in entries:
                raise VaExportError(
                    f"tensor {name} is stored twice, in {entries[name].file.name} and {path.name}",
                    where=path.parent,
                )
            entries[name] = entry
    return entries


def _check_index(directory: Path, index: Mapping[str, str], entries: Mapping[str, TensorEntry]) -> None:
    """The index and the shards must name the same tensors in the same files."""
    for name, file in sorted(index.items()):
        if name not in entries:
            raise VaExportError(f"the index puts tensor {name} in {file}, which lacks it", where=directory)
        if entries[name].file.name != file:
            raise VaExportError(
                f"the index puts tensor {name} in {file}, but it is in {entries[name].file.name}",
                where=directory,
            )
    extra = sorted(set(entries) - set(index))
    if extra:
        raise VaExportError(
            f"{len(extra)} tensors are in the shards but not in the index, first {extra[0]}",
            where=directory,
            fix="the index belongs to another version of the shards: download both again",
        )


def _count_non_finite(tensor: torch.Tensor) -> int:
    """Number of NaN and infinite elements."""
    flat = tensor.reshape(-1)
    bad = 0
    for start in range(0, len(flat), _FINITE_CHECK_ELEMENTS):
        part = flat[start : start + _FINITE_CHECK_ELEMENTS]
        bad += int((~torch.isfinite(part)).sum())
    return bad
