"""Take a few frames of a video file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from va_export.errors import VaExportError
from va_export.runtime.video.container import check_file, told_by_its_bytes, unreadable
from va_export.runtime.video.decode import Decoded, decode_video
from va_export.runtime.video.sampling import Edges, check_sampling, is_by_rate, sample_frames
from va_export.runtime.video.seek import seek_video
from va_export.runtime.video.survey import Survey, end_of, longest_frame, survey_video

# Beyond these shares it is no blemish any more. The tail is what comes after the last frame that decodes; the frames
# that a decoder patches may be many after a single error, up to the next key frame.
_LONGEST_TAIL, _MOST_CORRUPT, _MOST_SILENT, _MOST_PATCHED = 0.1, 0.1, 0.5, 0.9


@dataclass(frozen=True)
class Reading:
    """How a clip was read.

    Attributes:
        file: its name, characters that are not UTF-8 replaced.
        container, codec: FFmpeg's names.
        stream: index of the stream that was taken for the film.
        size: (width, height) of the frames as shown, before any processing.
        rotation: degrees clockwise that frames were turned, after mirroring them left to right if `mirrored`.
        sampling: the rule's name.
        seconds: from the first frame's beginning to the last one's end.
        decoded: frames.
        passed_over: frames that were not decoded, because a long clip is read from key frame to key frame (`seek.py`).
            Damage there that leaves the heads of packets sound is not seen: the counts below are of what was decoded.
        packets: in the film's stream, those that are not to be shown left out.
        corrupt_packets: skipped: they do not decode.
        patched_frames: damaged, or built on damaged ones, and filled up by the decoder.
        promised: what the container promises, in words, where it holds less; else None.
        truncated: whether frames that the container promises are missing, beyond single ones.
        notes: what a user should be told, a sentence each.
    """

    file: str
    container: str
    codec: str
    stream: int
    size: tuple[int, int]
    rotation: int
    mirrored: bool
    sampling: str
    seconds: float
    decoded: int
    passed_over: int
    packets: int
    corrupt_packets: int
    patched_frames: int
    promised: str | None
    truncated: bool
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain data, for the manifest."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


@dataclass(frozen=True)
class Frames:
    """Frames taken from a video.

    Attributes:
        pixels: [F, H, W, 3] uint8, RGB, as a player shows them. A frame whose size differs from that of the clip's
            first is brought to it, as decord and OpenCV do.
        indices: position of each frame in the video, from 0, in the order in which they are shown.
        timestamps: seconds from the beginning of the first frame, [F].
        reading: how the file was read.
    """

    pixels: npt.NDArray[np.uint8]
    indices: tuple[int, ...]
    timestamps: tuple[float, ...]
    reading: Reading


def read_frames(
    path: Path | str, n_frames: int, sampling: str = "segment-midpoint", *, allow_truncated: bool = False
) -> Frames:
    """Decode a video and keep some of its frames.

    All packets are read first, without decoding. Where they tell for certain which of them give the wanted frames, only
    those are decoded, and the film's end; else all of it is, from its start, and a second time if that finds another
    number of frames or other times. At no time are more than the wanted frames held.

    Args:
        n_frames: how many; with "fps=…" at most.
        sampling: a key of `SAMPLERS`, or "fps=2".
        allow_truncated: take what is there of a file that is cut short, or of which more than a tenth does not decode.

    Raises:
        VaExportError: no such file, not a video, damaged or cut short, or too few frames.
    """
    path = check_file(path)
    check_sampling(sampling)
    survey = survey_video(path)
    if survey.promised is not None and not allow_truncated:
        raise _cut_short(path, _shortfall(survey.promised, survey.edges))

    def guessed(edges: Edges) -> list[int]:
        found = len(edges) - 1
        enough = found >= (1 if is_by_rate(sampling) else n_frames)
        return sample_frames(sampling, found, n_frames, edges) if enough else []

    wanted = guessed(survey.edges)
    decoded = (seek_video(path, survey.index, wanted) if survey.index else None) or decode_video(path, wanted)
    if decoded.errors or len(decoded.spans) < survey.packets:
        careful = decode_video(path, guessed(decoded.edges), careful=True)
        decoded = careful if len(careful.spans) >= len(decoded.spans) else decoded
    lost = _lost(path, survey, decoded)
    if lost is not None and not allow_truncated:
        raise _cut_short(path, lost)
    try:
        taken = sample_frames(sampling, len(decoded.spans), n_frames, decoded.edges)
    except VaExportError as error:
        raise VaExportError(error.what, where=path if error.where == "video" else error.where, fix=error.fix) from None
    if decoded.wanted != set(taken):
        again = decode_video(path, taken, careful=decoded.careful)
        if again.spans != decoded.spans:
            raise VaExportError("the file changed while it was read", where=path, fix="wait until it is complete")
        decoded = again
    return Frames(
        pixels=np.stack([decoded.kept[index] for index in taken]),
        indices=tuple(taken),
        timestamps=tuple(round(float(decoded.edges[index]), 6) for index in taken),
        reading=_reading(path, sampling, survey, decoded, lost),
    )


def _lost(path: Path, survey: Survey, decoded: Decoded) -> str | None:
    """What of the promised frames is missing, in words; None if nothing is but single ones.

    Raises:
        VaExportError: nothing decodes undamaged.
    """
    found = len(decoded.spans)
    if decoded.patched == found:
        raise unreadable(
            path, f"of its {survey.packets} packets none decodes undamaged" if survey.packets else "it has no frames"
        )
    seconds = float(survey.edges[-1])
    if survey.promised is not None:
        return _shortfall(survey.promised, decoded.edges)
    tail = survey.end - end_of(decoded.spans)
    if tail > max(_LONGEST_TAIL * seconds, 1.5 * longest_frame(decoded.edges)):
        return f"nothing decodes in the last {tail:.1f} of {seconds:.1f} s: {found} of {survey.packets} frames are left"
    if decoded.errors > max(1, _MOST_CORRUPT * survey.packets):
        return f"{decoded.errors} of its {survey.packets} packets do not decode"
    if _silent(survey, decoded) > _MOST_SILENT * survey.packets:
        return f"only {found} of {survey.packets} frames decode"
    if decoded.patched > _MOST_PATCHED * found:
        return f"{decoded.patched} of {found} frames are damaged"
    return None


def _silent(survey: Survey, decoded: Decoded) -> int:
    """Packets that should have given a frame and gave neither it nor an error. VP8 has some that only prepare later
    frames; an interlaced frame may come in two."""
    silent = survey.packets - len(decoded.spans) - decoded.errors
    return 0 if decoded.codec == "vp8" or decoded.interlaced else max(0, silent)


def _shortfall(promised: str, edges: Edges) -> str:
    return f"it promises {promised}; frames that are there: {len(edges) - 1} ({edges[-1]:.1f} s)"


def _cut_short(path: Path, lost: str) -> VaExportError:
    if told := told_by_its_bytes(path):  # of an encrypted clip some packets decode, by chance
        return VaExportError(told[0], where=path, fix=told[1])
    return VaExportError(
        f"the video is cut short or damaged: {lost}",
        where=path,
        fix="get the whole file, or use what is there: --allow-truncated, in Python allow_truncated=True",
    )


def _reading(path: Path, sampling: str, survey: Survey, decoded: Decoded, lost: str | None) -> Reading:
    found = len(decoded.spans)
    notes = list(decoded.notes)
    if lost is not None:
        notes.append(f"the video is cut short or damaged: {lost}; what is there was taken for the whole")
    if decoded.errors:
        notes.append(f"damaged packets, skipped: {decoded.errors} of {survey.packets}")
    if survey.marked_packets > decoded.errors:
        notes.append(f"packets that the container knows to be damaged: {survey.marked_packets} of {survey.packets}")
    if decoded.patched:
        notes.append(
            f"frames that are damaged or build on damaged ones, patched by the decoder: {decoded.patched} of {found}"
        )
    if (silent := _silent(survey, decoded)) > 0:
        notes.append(f"packets without a frame: {silent} of {survey.packets}")
    if decoded.other_sizes:
        width, height = decoded.size
        notes.append(
            f"the frame size changes; frames that were resized to the first one's {width} x {height}:"
            f" {decoded.other_sizes} of {found}"
        )
    return Reading(
        file=os.fsencode(path.name).decode("utf-8", "replace"),
        container=decoded.container,
        codec=decoded.codec,
        stream=decoded.stream,
        size=decoded.size,
        rotation=90 * decoded.orientation.quarter_turns,
        mirrored=decoded.orientation.mirrored,
        sampling=sampling,
        seconds=round(float(decoded.edges[-1]), 6),
        decoded=found - decoded.passed_over,
        passed_over=decoded.passed_over,
        packets=survey.packets,
        corrupt_packets=decoded.errors,
        patched_frames=decoded.patched,
        promised=survey.promised,
        truncated=lost is not None,
        notes=tuple(notes),
    )
