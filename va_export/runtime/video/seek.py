"""Decode a film from key frame to key frame, where it is certain to give what decoding all of it does.

The survey has read all packets. The decoder is given those from the key frame before each wanted frame up to it, the
same bytes in the same order. So nothing depends on how exactly a container seeks: one that has a good index is asked to
jump, and packets are passed over until the right one comes.

Certain means: every packet is sound as far as its first bytes tell and gives one frame, none brings parameter sets that
the header lacks (`heads.py`), times tell the order of the frames (`packet_index.py`), and each frame of a run comes out
in its place, undamaged, of the first one's size and not interlaced. The film's first frame is always decoded, and so is
its end, from the last key frame on. In all other cases the answer is None, and all of the film is to be decoded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from va_export.runtime.video.container import MOST_PIXELS
from va_export.runtime.video.decode import Decoded, open_film
from va_export.runtime.video.packet_index import PacketIndex, Run
from va_export.runtime.video.survey import frame_length_of

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

# Frames that a run costs beside its own: FFmpeg's threads of frames, 16 at most, start and end it one after the other.
_FRAMES_A_RUN = 16
_LARGEST_SHARE = 0.5


class _Astray(Exception):
    """Something came that the survey did not see, or does not come out as it should."""


def seek_video(path: Path, index: PacketIndex, wanted: Collection[int]) -> Decoded | None:
    """Decode as little as gives the wanted frames; None where decoding the whole film is safer, or as fast.

    Raises:
        VaExportError: as `decode_video`.
    """
    import av

    count = len(index.frames)
    runs = index.runs({0, count - 1, *wanted}) or []
    packets = sum(run.last - run.first + 1 for run in runs)
    if not runs or packets + _FRAMES_A_RUN * len(runs) > _LARGEST_SHARE * len(index.rows):
        return None
    result = Decoded(set(wanted), passed_over=count - sum(run.end - run.begin for run in runs))
    with open_film(path, result) as (container, stream):
        result.spans = index.spans(float(stream.time_base or 0), frame_length_of(stream))
        reader = _Reader(container, stream, index)
        try:
            for run in runs:
                _decode(path, stream, reader, run, result)
        except MemoryError:
            raise
        except (_Astray, av.FFmpegError, OSError, ValueError):
            return None
    return result


def _decode(path: Path, stream: VideoStream, reader: _Reader, run: Run, result: Decoded) -> None:
    """Take the frames of a run."""
    index, due = reader.index, run.begin
    for packet in chain(reader.packets(run), [None]):
        for frame in stream.codec_context.decode(packet):
            time, length = index.rows[index.frames[due], :2].tolist()
            if due == run.begin and frame.pts is not None and frame.pts < time:
                continue  # it leads the key frame, and lacks what it builds on
            if frame.pts != time or frame.is_corrupt or frame.interlaced_frame:
                raise _Astray
            if due == len(index.frames) - 1 and (frame.duration or 0) != length:  # it ends where the clip does
                raise _Astray
            if frame.width * frame.height > MOST_PIXELS:
                raise _Astray
            result.take(path, frame, due)
            if result.other_sizes:
                raise _Astray
            due += 1
            if due == run.end:
                return
    raise _Astray


class _Reader:
    """The film's packets, by their numbers, which ascend from call to call."""

    def __init__(self, container: InputContainer, stream: VideoStream, index: PacketIndex) -> None:
        self.container, self.stream, self.index = container, stream, index
        self._source, self._next = container.demux(stream), 0

    def packets(self, run: Run) -> Iterator[Packet[Any]]:
        """Those of a run, for a decoder that has forgotten all others.

        Raises:
            _Astray: others are there.
        """
        is_found = self._next == run.first or not self._jump(run.first)
        self.stream.codec_context.flush_buffers()
        for packet in self._source:
            if not packet.size:
                continue
            if not is_found:
                if not self.index.is_packet(run.first, packet):
                    continue
                is_found, self._next = True, run.first
            number, self._next = self._next, self._next + 1
            if number >= run.first:
                if not self.index.is_packet(number, packet):
                    raise _Astray
                yield packet
            if number == run.last:
                return
        raise _Astray

    def _jump(self, number: int) -> bool:
        """Let the container go to a packet, or before it; False where only reading on leads there."""
        time, _, _, _, decoded = self.index.rows[number].tolist()
        kinds = set(self.container.format.name.split(","))
        if "mov" in kinds:
            time, entries = decoded, self.stream.index_entries
            at = entries.search_timestamp(time)
            if at < 0 or entries[at].timestamp != time:  # of files in fragments only the first is known
                return False
        elif "matroska" not in kinds:
            return False
        self.container.seek(time, stream=self.stream)
        self._source = self.container.demux(self.stream)
        return True
