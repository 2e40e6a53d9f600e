"""Which packets give which frames, and the shortest ways to some of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from av.packet import Packet

Int64 = npt.NDArray[np.int64]
# Time, length, place, size and decoding time of a packet, whether it is to be shown, and whether it is an entry.
Row = tuple[int | None, int, int, int, int | None, bool, bool]


@dataclass(frozen=True)
class Run:
    """Packets first … last of the file's order, for frames begin … end − 1 of the order in which they are shown."""

    first: int
    last: int
    begin: int
    end: int


@dataclass(frozen=True)
class PacketIndex:
    """A film's packets in the file's order, each that is shown one frame.

    Attributes:
        rows: [P, 5] of time, length, place in the file, size and decoding time of each; times in the stream's ticks.
        is_entry: [P], whether a decoder may start there: what is shown from then on builds on nothing before it.
        frames: [F], the packet of each frame in the order in which they are shown.
    """

    rows: Int64
    is_entry: npt.NDArray[np.bool_]
    frames: Int64

    @classmethod
    def of_packets(cls, rows: list[Row]) -> PacketIndex | None:
        """The index of packets in the file's order; None where their times do not tell the order of the frames, or the
        first is no entry."""
        if not rows:
            return None
        table = np.array([[*row[:4], row[0] if row[4] is None else row[4], *row[5:]] for row in rows], np.int64)
        is_shown, is_entry = table[:, 5].astype(np.bool_), table[:, 6].astype(np.bool_)
        shown = np.flatnonzero(is_shown)
        frames = shown[np.argsort(table[shown, 0], kind="stable")]
        in_order = all((np.diff(times) > 0).all() for times in (table[frames, 0], table[is_entry, 0]))
        return cls(table[:, :5], is_entry, frames) if in_order and is_entry[0] and len(frames) else None

    def is_packet(self, number: int, packet: Packet[Any]) -> bool:
        """Whether a packet that is read now is the one of that number."""
        time, _, place, size, _ = self.rows[number].tolist()
        return (packet.pts, packet.size) == (time, size) and (packet.pos or 0) == place

    def spans(self, tick: float, frame_length: float) -> list[tuple[float, float]]:
        """When each frame begins and how long it lasts, in seconds from the container's zero."""
        rows = self.rows[self.frames]
        return [(time * tick, length * tick or frame_length) for time, length in rows[:, :2].tolist()]

    def runs(self, wanted: Iterable[int]) -> list[Run] | None:
        """What must be decoded for these frames: from the last entry that is not shown after each; what is in it from
        the first to the last of them. None if a frame has no entry."""
        entries = np.flatnonzero(self.is_entry)
        times = self.rows[self.frames, 0]
        runs: list[Run] = []
        for frame in sorted(set(wanted)):
            at = int(np.searchsorted(self.rows[entries, 0], times[frame], side="right")) - 1
            if at < 0:
                return None
            first = int(entries[at])
            begin, end = int(np.searchsorted(times, self.rows[first, 0])), frame + 1
            # Pictures that lead the next entry's come after it in the file.
            last = int(self.frames[begin:end].max())
            if runs and first <= runs[-1].last:
                begin, first = runs[-1].begin, runs.pop().first
                last = max(last, int(self.frames[begin:end].max()))
            runs.append(Run(first, last, begin, end))
        return runs
