"""Checkpoint rows → key map → precision → the bytes of a data file, in pieces that several threads fill at once.

A piece is as many rows of a parameter as a buffer holds. Where a pass turned the weight round, the file has the
parameter's columns one after another, and the piece is a run of each column: all of it if the buffer holds the weight.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from va_export.checkpoint.files import uninitialised
from va_export.export.narrowing import Loss, narrow
from va_export.graph.weight_layout import WeightSlot
from va_export.models.family import WeightSource

# Elements read, checked and converted at a time.
BLOCK_ELEMENTS = 1 << 22
# What a buffer holds: all of 8B's largest layer matrix (117 MB in float16), a sixth of its vocabulary matrix.
PIECE_BYTES = 128 << 20
# One is filled while the other is written and hashed.
BUFFERS = 2
# Turned at a time. The tile's rows are further apart than they are long, or the elements of a column would get in each
# other's way in the cache: 3.3 GB/s with the gap, 1.2 without, 0.3 for whole blocks (one core, rows of 8 KB).
TILE_ROWS, TILE_COLUMNS, _TILE_GAP = 512, 256, 8


class WeightReader(Protocol):
    """What weights are read from, by several threads; `Checkpoint` is one."""

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of a tensor, values as they are."""


@dataclass(frozen=True)
class Piece:
    """Some rows of one parameter, as they lie in the data file: runs of equal length.

    Attributes:
        slot: the weight's.
        runs: uint8 (runs, bytes), contiguous: valid when all of `fills` are done, until the next piece is asked for.
        offset: of the first run in the file.
        stride: bytes of the file from one run's start to the next.
        fills: what its parts lose.
        is_last: whether the weight ends here.
    """

    slot: WeightSlot
    runs: torch.Tensor
    offset: int
    stride: int
    fills: Sequence[Future[Loss]]
    is_last: bool


def pieces(
    slots: Sequence[WeightSlot],
    weight_map: Mapping[str, WeightSource],
    reader: WeightReader,
    workers: Executor,
    *,
    clip: bool = False,
) -> Iterator[Piece]:
    """All pieces of some weights in the order of the file; the next is filled while one is dealt with."""
    sizes = [_rows_held(slot) * _row_bytes(slot) for slot in slots]
    buffers = deque(uninitialised((max(sizes, default=0),), torch.uint8) for _ in range(BUFFERS))
    ahead: deque[Piece] = deque()
    for slot in slots:
        total, held = _shape(slot)[0], _rows_held(slot)
        for first in range(0, total, held):
            buffers.rotate(-1)
            stop = min(first + held, total)
            fill = _Fill(slot, weight_map[slot.name], reader, clip)
            ahead.append(fill.piece(first, stop, buffers[0], workers))
            if len(ahead) == BUFFERS:
                yield ahead.popleft()
    yield from ahead


def source_blocks(source: WeightSource, first: int, stop: int, least_rows: int = 1) -> Iterator[tuple[int, int, int]]:
    """Rows [first, stop) of a parameter, some at a time: (row of the parameter, start and stop in the checkpoint's)."""
    height = max(least_rows, BLOCK_ELEMENTS // max(1, math.prod(source.checkpoint_shape[1:])))
    before = 0
    for begin, end in _row_spans(source):
        shift = begin - before
        for row in range(max(first, before), min(stop, end - shift), height):
            yield row, row + shift, min(row + height, stop, end - shift) + shift
        before = end - shift


def read_block(source: WeightSource, reader: WeightReader, start: int, stop: int) -> torch.Tensor:
    """Rows of the checkpoint's tensor as rows of the parameter."""
    rows = reader.rows(source.checkpoint_name, start, stop)
    return rows.flatten(1) if source.is_joined else rows


def _row_spans(source: WeightSource) -> list[tuple[int, int]]:
    """The ranges of the checkpoint tensor's rows that make up the parameter, in its order."""
    blocks = source.blocks
    if blocks is None:
        return [(0, source.checkpoint_shape[0] if source.checkpoint_shape else 1)]
    firsts = [group * blocks.blocks_per_group * blocks.block_rows for group in range(blocks.groups)]
    return [(first + blocks.start * blocks.block_rows, first + blocks.stop * blocks.block_rows) for first in firsts]


def _shape(slot: WeightSlot) -> tuple[int, int]:
    """Rows of the parameter, and elements in each."""
    shape = slot.shape[::-1] if slot.transposed else slot.shape
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


def _row_bytes(slot: WeightSlot) -> int:
    return _shape(slot)[1] * slot.torch_dtype.itemsize


def _rows_held(slot: WeightSlot) -> int:
    """Rows of one piece."""
    return max(1, min(_shape(slot)[0], PIECE_BYTES // max(1, _row_bytes(slot))))


@dataclass(frozen=True)
class _Fill:
    slot: WeightSlot
    source: WeightSource
    reader: WeightReader
    clip: bool

    def piece(self, first: int, stop: int, buffer: torch.Tensor, workers: Executor) -> Piece:
        """Begin to put rows [first, stop) into a buffer."""
        slot, rows, (total, width) = self.slot, stop - first, _shape(self.slot)
        item = slot.torch_dtype.itemsize
        content = buffer[: rows * width * item]
        values = content.view(slot.torch_dtype)
        place = values.view(width, rows).T if slot.transposed else values.view(rows, width)
        fills = [
            workers.submit(self._put, start, end, place[row - first : row - first + end - start])
            for row, start, end in source_blocks(self.source, first, stop, TILE_ROWS if slot.transposed else 1)
        ]
        if slot.transposed:
            runs, offset, stride = content.view(width, rows * item), first * item, total * item
        else:
            runs, offset, stride = content.view(1, -1), first * width * item, len(content)
        return Piece(slot, runs, slot.offset + offset, stride, fills, stop == total)

    def _put(self, start: int, stop: int, place: torch.Tensor) -> Loss:
        """Rows of the checkpoint's tensor into their place."""
        values = read_block(self.source, self.reader, start, stop)
        narrowed, loss = narrow(values, self.slot.torch_dtype, clip=self.clip)
        rows = narrowed.reshape(place.shape)
        if self.slot.transposed:
            _turn(rows, place.T)
        else:
            place.copy_(rows)
        return loss


def _turn(rows: torch.Tensor, columns: torch.Tensor) -> None:
    """columns[j, i] = rows[i, j], in tiles."""
    integers = {2: torch.int16, 4: torch.int32}[rows.dtype.itemsize]
    source, target = rows.view(integers).numpy(), columns.view(integers).numpy()
    tile = np.empty((TILE_ROWS, TILE_COLUMNS + _TILE_GAP), source.dtype)
    for row in range(0, source.shape[0], TILE_ROWS):
        for column in range(0, source.shape[1], TILE_COLUMNS):
            block = source[row : row + TILE_ROWS, column : column + TILE_COLUMNS]
            part = tile[: block.shape[0], : block.shape[1]]
            part[:] = block
            target[column : column + TILE_COLUMNS, row : row + TILE_ROWS] = part.T
