"""Checkpoint rows → key map → precision → ONNX external data, a few megabytes at a time, from where a run stopped.

Now and then the data so far is flushed and a mark is handed out: how far it is, and the SHA-256 of all bytes before.
A later run reads the file up to the last mark whose digest is right, and goes on from there; so what it leaves is, byte
for byte, what one uninterrupted run leaves, and a torn write is found. The digest of the whole file is known at the
end without reading it again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from msgspec import field

from va_export.bundle.journal import Record
from va_export.documents import Form
from va_export.export.narrowing import Loss, measure, narrow
from va_export.graph.weight_layout import WeightSlot
from va_export.models.family import WeightSource

# Elements read, checked, converted and written at a time. Blocks of this size transpose fastest (2 GB/s against 0.1 for
# whole matrices: both sides stay in the cache) and keep a tensor that is not transposed to some megabytes.
BLOCK_ELEMENTS = 1 << 22
# Of a weight that is turned, what is held at most: all of 8B's largest layer matrix (117 MB in float16), a sixth of its
# vocabulary matrix (758 MB), whose six readings come out of the page cache.
BAND_BYTES = 128 << 20
# Bytes between two marks: what a kill costs, against the price of flushing.
MARK_BYTES = 256 << 20
_READ_BYTES = 8 << 20


class WeightReader(Protocol):
    """What weights are read from; `Checkpoint` is one."""

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of a tensor, values as they are."""


class Mark(Form, frozen=True):
    """How far a data file is.

    Attributes:
        slots: weights written.
        bytes: where the last of them ends.
        sha256: of all bytes before.
        losses: of the weights since the mark before, those that lose something, by name.
    """

    slots: int
    bytes: int
    sha256: str
    losses: dict[str, Loss] = field(default_factory=dict)


class Written(Record, frozen=True, tag="weights"):
    """A mark, in the journal of an unfinished export: of the data file of the graph with that SHA-256."""

    graph: str
    mark: Mark


@dataclass(frozen=True)
class Streamed:
    """What became of a data file.

    Attributes:
        sha256: of the file; empty if there are unusable weights, for the file is not whole then.
        losses: all weights that lose something, by name.
        unusable: those of them that are not finite, or out of range and not to be clipped.
    """

    sha256: str
    losses: dict[str, Loss]
    unusable: dict[str, Loss]


def stream_weights(
    path: Path,
    slots: Sequence[WeightSlot],
    weight_map: Mapping[str, WeightSource],
    reader: WeightReader,
    *,
    clip: bool = False,
    marks: Sequence[Mark] = (),
    on_mark: Callable[[Mark], None] = lambda _: None,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> Streamed:
    """Fill the data file `path`, which exists in its full size.

    A weight that is not finite, or out of range and not to be clipped, does not end the work at once: the others are
    still checked, so that all are reported, but no more is written.

    Args:
        marks: those of earlier runs, oldest first.
        on_mark: called when everything before it is on the disk.
        on_bytes: called with the number of bytes done since the call before, those found from earlier runs included.

    Raises:
        VaExportError: a weight cannot be read.
        OSError: the file cannot be written.
    """
    with path.open("r+b", buffering=0) as file, ThreadPoolExecutor(1) as hasher:
        out = _Output(path, file.fileno(), hasher, on_bytes)
        good = _verified(out, marks)
        losses = {name: loss for mark in marks[:good] for name, loss in mark.losses.items()}
        done = marks[good - 1].slots if good else 0
        unusable: dict[str, Loss] = {}
        fresh: dict[str, Loss] = {}
        marked = out.position
        for number, slot in enumerate(slots[done:], done + 1):
            loss = Loss()
            if not unusable:
                out.pad_to(slot.offset)
            for block, lost in _blocks(slot, weight_map[slot.name], reader, clip):
                loss += lost
                if _is_unusable(loss, clip):
                    unusable[slot.name] = loss
                if not unusable:
                    out.write(block)
            if loss.to_zero or loss.to_subnormal or not loss.fits:
                fresh[slot.name] = loss
            if not unusable and (out.position - marked >= MARK_BYTES or number == len(slots)):
                os.fsync(file.fileno())
                on_mark(Mark(number, out.position, out.hexdigest(), fresh))
                losses |= fresh
                fresh, marked = {}, out.position
        return Streamed("" if unusable else out.hexdigest(), losses | fresh, unusable)


def find_unusable(
    sources: Mapping[str, WeightSource], dtype: torch.dtype, reader: WeightReader, *, clip: bool = False
) -> dict[str, Loss]:
    """Those weights that could not be written as `dtype`; nothing is written."""
    unusable = {}
    for name, source in sources.items():
        loss = Loss()
        for rows in _source_blocks(source, reader):
            loss += measure(rows, dtype)
        if _is_unusable(loss, clip):
            unusable[name] = loss
    return unusable


def _is_unusable(loss: Loss, clip: bool) -> bool:
    return bool(loss.not_finite or (loss.overflow and not clip))


class _Output:
    """A file written from front to back, and the digest of what was written, which a second thread computes while the
    next block is read."""

    def __init__(self, path: Path, descriptor: int, hasher: Executor, on_bytes: Callable[[int], None]) -> None:
        self.position = 0
        self._digest = hashlib.sha256()
        self._hasher = hasher
        self._hashing: Future[None] | None = None
        self._path = path
        self._descriptor = descriptor
        self._on_bytes = on_bytes

    def write(self, block: torch.Tensor) -> None:
        """Write a contiguous tensor."""
        self._put(memoryview(block.reshape(-1).view(torch.uint8).numpy().data))

    def pad_to(self, offset: int) -> None:
        """Write zeros up to `offset`."""
        self._put(memoryview(bytes(offset - self.position)))

    def take(self, until: int) -> None:
        """Read what is there already up to `until`, as if it had been written now."""
        while self.position < until:
            content = os.pread(self._descriptor, min(_READ_BYTES, until - self.position), self.position)
            if not content:
                return
            self._advance(memoryview(content))

    def _put(self, content: memoryview) -> None:
        written = 0
        while written < len(content):
            try:
                written += os.pwrite(self._descriptor, content[written:], self.position + written)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self._path)) from error
        self._advance(content)

    def state(self) -> tuple[Any, int]:
        """The digest so far and the position, for `go_back`."""
        self._wait()
        return self._digest.copy(), self.position

    def go_back(self, state: tuple[Any, int]) -> None:
        """Forget what was taken since `state`."""
        self._wait()
        self._on_bytes(state[1] - self.position)
        self._digest, self.position = state

    def hexdigest(self) -> str:
        """SHA-256 of everything before the position."""
        self._wait()
        return self._digest.hexdigest()

    def _wait(self) -> None:
        if self._hashing is not None:
            self._hashing.result()

    def _advance(self, content: memoryview) -> None:
        self._wait()
        self._hashing = self._hasher.submit(self._digest.update, content)
        self.position += len(content)
        self._on_bytes(len(content))


def _verified(out: _Output, marks: Sequence[Mark]) -> int:
    """How many of the marks hold; `out` stands at the last of those."""
    for count, mark in enumerate(marks):
        before = out.state()
        out.take(mark.bytes)
        if out.position != mark.bytes or out.hexdigest() != mark.sha256:
            out.go_back(before)
            return count
    return len(marks)


def _blocks(
    slot: WeightSlot, source: WeightSource, reader: WeightReader, clip: bool
) -> Iterator[tuple[torch.Tensor, Loss]]:
    """A weight's bytes in the order of the file, with what each part lost."""
    if not slot.transposed:
        for block in _source_blocks(source, reader):
            yield narrow(block, slot.torch_dtype, clip=clip)
        return
    # The file has the parameter's columns one after another. A band of them is held at a time; for the next one the
    # source is read again, which costs less than memory for all of a vocabulary's matrix does.
    columns, rows = slot.shape
    band = max(1, BAND_BYTES // (rows * slot.torch_dtype.itemsize))
    for first in range(0, columns, band):
        turned = torch.empty((min(band, columns - first), rows), dtype=slot.torch_dtype)
        loss, row = Loss(), 0
        for block in _source_blocks(source, reader):
            is_whole = len(turned) == columns
            of_band = block if is_whole else block[:, first : first + len(turned)].contiguous()
            part, lost = narrow(of_band, slot.torch_dtype, clip=clip)
            if first == 0:  # what is lost is told once, of whole rows, before anything is written
                loss += lost if is_whole else measure(block, slot.torch_dtype)
            turned[:, row : row + len(part)] = part.T
            row += len(part)
        height = max(1, BLOCK_ELEMENTS // rows)
        for start in range(0, len(turned), height):
            yield turned[start : start + height], loss if start == 0 else Loss()


def _source_blocks(source: WeightSource, reader: WeightReader) -> Iterator[torch.Tensor]:
    """The parameter's rows, some at a time."""
    width = max(1, torch.Size(source.checkpoint_shape[1:]).numel())
    height = max(1, BLOCK_ELEMENTS // width)
    for start, stop in _row_spans(source):
        for row in range(start, stop, height):
            rows = reader.rows(source.checkpoint_name, row, min(row + height, stop))
            yield rows.flatten(1) if source.is_joined else rows


def _row_spans(source: WeightSource) -> list[tuple[int, int]]:
    """The ranges of the checkpoint tensor's rows that make up the parameter, in its order."""
    blocks = source.blocks
    if blocks is None:
        return [(0, source.checkpoint_shape[0] if source.checkpoint_shape else 1)]
    firsts = [group * blocks.blocks_per_group * blocks.block_rows for group in range(blocks.groups)]
    return [(first + blocks.start * blocks.block_rows, first + blocks.stop * blocks.block_rows) for first in firsts]
