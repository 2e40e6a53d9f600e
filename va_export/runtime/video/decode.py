"""One pass of the decoder over a film, in bounded memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from va_export.runtime.video.container import MOST_PIXELS, films, open_video
from va_export.runtime.video.display import Orientation, Picture, display_notes, shown_pixels
from va_export.runtime.video.survey import edges_of, frame_length_of

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from va_export.runtime.video.sampling import Edges

_OUTPUT_CORRUPT = 1 << 3  # AV_CODEC_FLAG_OUTPUT_CORRUPT


@dataclass
class Decoded:
    """What a pass found.

    Attributes:
        wanted: indices of the frames to keep.
        careful: whether damage was looked out for; see `decode_video`.
        kept: index → picture [H, W, 3].
        spans: when each frame begins and how long it lasts, in seconds, from the container's zero.
        passed_over: frames that were not decoded, of which only the packets are known; see `seek_video`.
        errors: packets that do not decode.
        patched: frames that the decoder marks as damaged.
        size, orientation: of the first frame; (width, height) as shown.
        other_sizes: frames that are not of the first one's size.
        interlaced: whether any frame is; then one may take two packets.
        container, codec, stream: FFmpeg's names, and the stream's index.
        notes: on the first frame and the choice of the stream, a sentence each.
    """

    wanted: Collection[int]
    careful: bool = False
    kept: dict[int, Picture] = field(default_factory=dict)
    spans: list[tuple[float, float]] = field(default_factory=list)
    passed_over: int = 0
    errors: int = 0
    patched: int = 0
    size: tuple[int, int] = (0, 0)
    orientation: Orientation = field(default_factory=Orientation)
    other_sizes: int = 0
    interlaced: bool = False
    container: str = ""
    codec: str = ""
    stream: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def edges(self) -> Edges:
        """[F + 1] seconds from the first frame's beginning."""
        return edges_of(self.spans)

    def take(self, path: Path, frame: VideoFrame, index: int) -> None:
        """Note what a frame is like, and keep its picture if it is wanted; frame 0 comes first."""
        orientation = Orientation.of_frame(frame, path)
        size = orientation.swap((frame.width, frame.height))
        if index == 0:
            self.orientation, self.size = orientation, size
            self.notes += display_notes(frame, orientation)
        self.patched += frame.is_corrupt
        self.interlaced |= frame.interlaced_frame
        self.other_sizes += size != self.size
        if index in self.wanted:
            self.kept[index] = shown_pixels(frame, orientation, self.size)


def decode_video(path: Path, wanted: Collection[int], *, careful: bool = False) -> Decoded:
    """Decode the whole film and keep the pictures of the wanted frames.

    Args:
        careful: for damaged files. Errors are seen packet by packet, which costs speed: with a thread a frame the
            decoder swallows some, and good frames with them. And frames between damage and the next key frame are put
            out, as players do, instead of being held back.

    Raises:
        VaExportError: the file cannot be opened, or frames are too large or in colours that are not converted.
    """
    result = Decoded(set(wanted), careful)
    with open_film(path, result) as (container, stream):
        if careful:
            stream.codec_context.flags |= _OUTPUT_CORRUPT
        frame_length, tick = frame_length_of(stream), float(stream.time_base or 0)
        for frame in _frames(container, stream, result):
            if frame.width * frame.height > MOST_PIXELS:  # a damaged header: the container's was checked
                result.errors += 1
            # Until something whole has come there is nothing that a damaged frame could be patched with.
            elif not (careful and frame.is_corrupt and not result.spans):
                start = sum(result.spans[-1]) if result.spans else 0.0
                length = (frame.duration or 0) * tick or frame_length
                result.take(path, frame, len(result.spans))
                result.spans.append((start if frame.pts is None else frame.pts * tick, length))
    return result


@contextmanager
def open_film(path: Path, result: Decoded) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file and its film, ready to be decoded; notes in the result what they are.

    Raises:
        VaExportError: as `open_video`.
    """
    with open_video(path) as (container, stream):
        result.container, result.codec = container.format.name, stream.codec_context.name
        result.stream = stream.index
        if len(candidates := films(container)) > 1:
            result.notes.append(f"the file has {len(candidates)} films: stream {stream.index} was taken")
        # FFmpeg's VP8 decoder reports no errors at all from threads of frames.
        stream.thread_type = "SLICE" if result.careful or result.codec == "vp8" else "AUTO"
        yield container, stream


def _frames(container: InputContainer, stream: VideoStream, result: Decoded) -> Iterator[VideoFrame]:
    """All frames that decode; counts the packets that do not."""
    import av

    def decoded(packet: Packet[Any] | None) -> list[VideoFrame]:
        try:
            return stream.codec_context.decode(packet)
        except MemoryError:
            raise
        except (av.FFmpegError, OSError, ValueError):
            result.errors += packet is not None
            return []

    try:
        for packet in container.demux(stream):
            if packet.size:
                yield from decoded(packet)
    except av.FFmpegError:  # the file cannot be read any further, as the survey has seen
        pass
    yield from decoded(None)
