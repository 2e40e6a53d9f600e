"""What a file holds and what it promises, from one pass over its packets that decodes nothing.

Containers promise in different ways, and some not at all:

    MP4, QuickTime      an index of all samples: it is short where a sample lies beyond the end of the file
    AVI, IVF            the number of frames
    Matroska, WebM,     seconds, unless it was streamed or the recording broke off (then nothing)
    FLV, MXF
    ASF, WMV            packets of data, unless it was streamed
    GIF                 a last byte
    MPEG-TS, MPEG-PS, Ogg, raw streams     nothing: what is there counts as the whole

Numbers of frames are never compared with what decodes: an edit list hides frames, an empty AVI chunk repeats one, a
second field completes one, and all of that is right.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from va_export.runtime.video.container import open_video
from va_export.runtime.video.heads import Head, head_reader
from va_export.runtime.video.packet_index import PacketIndex, Row
from va_export.runtime.video.sampling import Edges

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

_COUNTED = {"avi", "ivf"}
_TIMED = {"matroska", "flv", "mxf"}
_GIF_TRAILER = b";"
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_DATA_HEADER = 50  # bytes
# A header's seconds are rounded, and of a last frame's length some writers know nothing: one longest frame and a half.
_FRAMES_OF_TOLERANCE = 1.5


@dataclass(frozen=True)
class Survey:
    """A file's film.

    Attributes:
        edges: [packets + 1] seconds from its first frame, by the packets: a guess at what decoding will find.
        end: when the last packet's frame ends, in seconds from the container's zero.
        marked_packets: packets that the container itself knows to be damaged or cut.
        promised: what the container promises, in words, if it holds less; else None.
        index: which packet gives which frame; None where that is not certain, or a packet looks damaged.
    """

    edges: Edges
    end: float
    marked_packets: int
    promised: str | None
    index: PacketIndex | None = None

    @property
    def packets(self) -> int:
        """Packets that hold something and are to be shown."""
        return len(self.edges) - 1


@dataclass
class _Film:
    """The film's packets.

    Attributes:
        rows: of all, in the file's order.
        read_head: of a packet's bytes; None where there is no index, or none any more.
        last: of the packets that are to be shown.
    """

    tick: float
    frame_length: float
    read_head: Head | None
    rows: list[Row] = field(default_factory=list)
    marked: int = 0
    last: Packet[Any] | None = None

    def add(self, packet: Packet[Any]) -> None:
        shown, is_shown, is_entry = packet.pts, not packet.is_discard, False
        if self.read_head is not None:
            head = self.read_head(memoryview(packet))
            is_entry = bool(head) and packet.is_keyframe
            if head is None or shown is None or packet.is_corrupt or packet.has_sidedata("new_extradata"):
                self.read_head = None
        self.rows.append((shown, packet.duration or 0, packet.pos or 0, packet.size, packet.dts, is_shown, is_entry))
        if is_shown:
            self.marked += packet.is_corrupt
            self.last = packet

    @cached_property
    def spans(self) -> list[tuple[float, float]]:
        """Beginning and length of each packet that is to be shown, in seconds, in the file's order."""
        tick, frame_length = self.tick, self.frame_length
        times = (
            (decoded if time is None else time, length) for time, length, _, _, decoded, shown, _ in self.rows if shown
        )
        return [
            (number * frame_length if time is None else time * tick, length * tick or frame_length)
            for number, (time, length) in enumerate(times)
        ]

    @cached_property
    def decode_times(self) -> list[float]:
        return [row[4] * self.tick for row in self.rows if row[5] and row[4] is not None]

    @property
    def tolerance(self) -> float:
        """By decoding times: where a file is cut, the times at which frames are shown have holes."""
        gaps = np.diff(np.sort(self.decode_times))
        return _FRAMES_OF_TOLERANCE * max(self.frame_length, float(gaps.max(initial=0.0)))

    @property
    def until(self) -> float:
        """Where the frames end, or the first hole among those that the last packet was decoded ahead of."""
        decoded, tolerance = max(self.decode_times, default=np.inf), self.tolerance
        previous, end = np.inf, 0.0  # nothing comes before the first
        for start, length in sorted(self.spans):
            if start > max(decoded, previous) + tolerance:
                break
            previous, end = start, start + length
        return end


def survey_video(path: Path) -> Survey:
    """Read all packets of the file once.

    Raises:
        VaExportError: it cannot be opened, or has no film.
    """
    import av

    until, stopped = 0.0, None
    with open_video(path) as (container, stream):
        codec = stream.codec_context
        read_head = head_reader(codec.codec.canonical_name, codec.extradata or b"")
        film = _Film(float(stream.time_base or 0), frame_length_of(stream), read_head)
        try:
            # All streams: sound may go on when the film is over, and a container promises the longest.
            for packet in container.demux():
                if not packet.size:
                    continue
                if packet.stream_index == stream.index:
                    film.add(packet)
                elif packet.time_base:
                    start = packet.dts if packet.pts is None else packet.pts
                    until = max(until, float(((start or 0) + (packet.duration or 0)) * packet.time_base))
        except av.FFmpegError as error:
            stopped = f"more than can be read ({error.strerror})"
        promised = _promised(path, container, stream, film, until) or stopped
    index = None if film.read_head is None or promised else PacketIndex.of_packets(film.rows)
    return Survey(edges_of(film.spans), end_of(film.spans), film.marked, promised, index)


def frame_length_of(stream: VideoStream) -> float:
    """Seconds of a frame whose packet does not say it."""
    return 1 / float(stream.average_rate or stream.base_rate or 25)


def edges_of(spans: list[tuple[float, float]]) -> Edges:
    """Beginnings and lengths of F frames, in any order → [F + 1] seconds from the first one's beginning."""
    if not spans:
        return np.zeros(1)
    starts = np.sort(np.array([start for start, _ in spans]))
    edges: Edges = np.append(starts, max(end_of(spans), starts[-1])) - starts[0]
    return edges


def end_of(spans: list[tuple[float, float]]) -> float:
    """When the last frame ends."""
    start, length = max(spans, default=(0.0, 0.0))
    return start + length


def longest_frame(edges: Edges) -> float:
    """Seconds that the longest frame is on the screen."""
    return float(np.diff(edges).max(initial=0.0))


def _promised(path: Path, container: InputContainer, stream: VideoStream, film: _Film, until: float) -> str | None:
    """What the container promises, in words, if it holds less; `until`: when its other streams end."""
    kinds = set(container.format.name.split(","))
    by_stream = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
    film_until = film.until + film.tolerance
    if "mov" in kinds:
        index, size = stream.index_entries, container.size
        if any(entry.pos + entry.size > size for entry in index):
            return f"{max(len(index), stream.frames)} frames"
        # In fragments: a table of contents may promise more of them. Edit lists make other files' seconds vague.
        if not stream.frames and by_stream > film_until:
            return f"{by_stream:.1f} s"
    elif kinds & _COUNTED:
        # Chunks without data repeat a frame and are no packets, so the number alone says nothing.
        short = stream.frames > len(film.spans) and _is_cut_riff(path)
        if short or stream.frames * film.frame_length > film_until:
            return f"{stream.frames} frames"
    elif kinds & _TIMED and container.duration:
        # FFmpeg makes up seconds from the bit rate where a header has none, and then gives them to the stream too.
        stated = container.duration / 1e6
        if (not by_stream or "mxf" in kinds) and stated > max(until + film.tolerance, film_until):
            return f"{stated:.1f} s"
    elif "asf" in kinds:
        return _asf_shortfall(path)
    elif "gif" in kinds and film.last is not None and bytes(film.last)[-1:] != _GIF_TRAILER:
        return "more frames"
    return None


def _is_cut_riff(path: Path) -> bool:
    """Whether a RIFF file, such as AVI, is shorter than its first chunk says."""
    with path.open("rb") as file:
        head = file.read(8)
    return head[:4] == b"RIFF" and 8 + int.from_bytes(head[4:], "little") > path.stat().st_size


def _asf_shortfall(path: Path) -> str | None:
    """What an ASF file's header promises, in words, where its packets of data end behind the file; FFmpeg forgets the
    header's numbers where the file's size is not the one that it states."""
    with path.open("rb") as file:
        head = file.read(1 << 16)
    at = head.find(_ASF_FILE_PROPERTIES)
    if at < 0 or at + 104 > len(head):
        return None

    def number(place: int, length: int) -> int:
        return int.from_bytes(head[place : place + length], "little")

    is_broadcast, packets, size = number(at + 88, 4) & 1, number(at + 56, 8), number(at + 92, 4)
    if is_broadcast or number(16, 8) + _ASF_DATA_HEADER + packets * size <= path.stat().st_size:
        return None
    return f"{number(at + 64, 8) / 1e7 - number(at + 80, 8) / 1e3:.1f} s"
