"""Checkpoint rows → key map → precision → ONNX external data, a few megabytes at a time, from where a run stopped.

Now and then the data so far is flushed and a mark is handed out: how far it is, and the SHA-256 of all bytes before.
A later run reads the file up to the last mark whose digest is right, and goes on from there; so what it leaves is, byte
for byte, what one uninterrupted run leaves, and a torn write is found. The digest of the whole file is known at the
end; only weights that no buffer holds were read back for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from msgspec import field, structs

from va_export.bundle.journal import Record
from va_export.documents import Form
from va_export.export.narrowing import Loss, measure
from va_export.graph.data_file import DataFile, open_data_file
from va_export.graph.weight_layout import WeightSlot
from va_export.graph.weight_pieces import Piece, WeightReader, pieces, read_block, source_blocks
from va_export.models.family import WeightSource

# Bytes between two marks: what a kill costs, against the price of flushing.
MARK_BYTES = 256 << 20
# Threads that read and convert; more would wait for the one that computes SHA-256 of what they make.
WORKERS = 2


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
    with open_data_file(path, on_bytes) as out, _workers() as workers:
        good = _verified(out, marks)
        losses = {name: loss for mark in marks[:good] for name, loss in mark.losses.items()}
        done = marks[good - 1].slots if good else 0
        unusable: dict[str, Loss] = {}
        fresh: dict[str, Loss] = {}
        loss, marked, marking = Loss(), out.position, _Marking(out, on_mark)
        for piece in pieces(slots[done:], weight_map, reader, workers, clip=clip):
            loss = sum((fill.result() for fill in piece.fills), loss)
            if _is_unusable(loss, clip):
                unusable[piece.slot.name] = loss
            if not unusable:
                _write(out, piece)
            if not piece.is_last:
                continue
            if loss.to_zero or loss.to_subnormal or not loss.fits:
                fresh[piece.slot.name] = loss
            loss, done = Loss(), done + 1
            if not unusable and (out.position - marked >= MARK_BYTES or done == len(slots)):
                marking.begin(done, fresh)
                losses |= fresh
                fresh, marked = {}, out.position
        marking.end()
        return Streamed("" if unusable else out.hexdigest(), losses | fresh, unusable)


def find_unusable(
    sources: Mapping[str, WeightSource], dtype: torch.dtype, reader: WeightReader, *, clip: bool = False
) -> dict[str, Loss]:
    """Those weights that could not be written as `dtype`; nothing is written."""
    unusable = {}
    for name, source in sources.items():
        rows = source.shape[0] if source.shape else 1
        blocks = source_blocks(source, 0, rows)
        loss = sum((measure(read_block(source, reader, start, stop), dtype) for _, start, stop in blocks), Loss())
        if _is_unusable(loss, clip):
            unusable[name] = loss
    return unusable


def _is_unusable(loss: Loss, clip: bool) -> bool:
    return bool(loss.not_finite or (loss.overflow and not clip))


class _Marking:
    """Marks, each handed out when the disk has all that lies before it, for which nobody waits."""

    def __init__(self, out: DataFile, on_mark: Callable[[Mark], None]) -> None:
        self._out = out
        self._on_mark = on_mark
        self._begun: tuple[Mark, Future[str]] | None = None

    def begin(self, slots: int, losses: dict[str, Loss]) -> None:
        """Flush what was written so far, of so many weights."""
        self.end()
        self._begun = Mark(slots, self._out.position, "", losses), self._out.flush()

    def end(self) -> None:
        """Wait for the mark that was begun last, and hand it out."""
        if self._begun is not None:
            mark, digest = self._begun
            self._on_mark(structs.replace(mark, sha256=digest.result()))
            self._begun = None


@contextmanager
def _workers() -> Iterator[Executor]:
    """Threads in each of which PyTorch starts no others."""
    threads = torch.get_num_threads()
    workers = ThreadPoolExecutor(WORKERS, "weights", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield workers
    finally:
        workers.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # what was set last, by whomever, holds for threads to come


def _write(out: DataFile, piece: Piece) -> None:
    """Put a piece into the file; the weight's gaps are closed with its last."""
    if out.position < piece.slot.offset:
        out.pad_to(piece.slot.offset)
    if len(piece.runs) == 1 or piece.stride == piece.runs.shape[1]:
        out.write(memoryview(piece.runs.numpy().reshape(-1).data))
        return
    out.write_runs(piece.runs.numpy(), piece.offset, piece.stride)
    if piece.is_last:
        out.take(piece.slot.offset + piece.slot.length)


def _verified(out: DataFile, marks: Sequence[Mark]) -> int:
    """How many of the marks hold; `out` stands at the last of those."""
    for count, mark in enumerate(marks):
        before = out.state()
        out.take(mark.bytes)
        if out.position != mark.bytes or out.hexdigest() != mark.sha256:
            out.go_back(before)
            return count
    return len(marks)
