"""From a decoded frame to the picture that a player shows.

Applied: the display matrix (quarter turns and mirroring), the colour matrix and range that the stream is tagged with.
As in decord 0.6 and OpenCV 5, which the model families read their clips with, a stream without tags is BT.601 of
limited range, pixels that are not square stay unstretched, interlaced frames stay woven, alpha is left out, and HDR is
not tone-mapped. Those two turn frames, but do not mirror them; players and ffmpeg do.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from va_export.errors import VaExportError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

Picture = npt.NDArray[np.uint8]

_RESERVED, _UNTAGGED, _UNKNOWN_RANGE = 3, 2, 0  # AVColorSpace, AVColorSpace, AVColorRange
_HDR = {16: "PQ", 18: "HLG"}  # AVColorTransferCharacteristic
_ANGLE_TOLERANCE = 1.0  # degrees; the same as ffmpeg's


@dataclass(frozen=True)
class Orientation:
    """How a stored frame is turned into the shown one: mirrored left to right first, then turned clockwise.

    Attributes:
        quarter_turns: clockwise, 0 to 3.
        off_by: degrees between the matrix and the nearest quarter turn.
        exact: False where the file's matrix cannot be read, only its angle, so that mirroring goes unseen.
    """

    quarter_turns: int = 0
    mirrored: bool = False
    off_by: float = 0.0
    exact: bool = True

    @classmethod
    def of_matrix(cls, matrix: tuple[int, ...]) -> Orientation:
        """Of a display matrix: 9 numbers, rows (a, b, u), (c, d, v), (x, y, w); a pixel (p, q) is shown at
        (a·p + c·q + x, b·p + d·q + y). One that shows nothing is no orientation."""
        a, b, _, c, d, *_ = matrix
        determinant = a * d - b * c
        if determinant == 0:
            return cls()
        angle = math.degrees(math.atan2(-c, d))
        quarters = round(angle / 90)
        return cls(quarters % 4, determinant < 0, abs(angle - 90 * quarters))

    @classmethod
    def of_frame(cls, frame: VideoFrame) -> Orientation:
        """Of the display matrix that the container or the stream gave the frame."""
        try:
            side_data: Iterable[Any] = frame.side_data
            matrices = [bytes(data) for data in side_data if data.type.name == "DISPLAYMATRIX"]
        except ValueError:  # PyAV does not know all kinds of side data that FFmpeg does, and then shows none
            return cls(round(-frame.rotation / 90) % 4, exact=False) if frame.rotation else cls()
        return cls.of_matrix(struct.unpack("=9i", matrices[0])) if matrices and len(matrices[0]) == 36 else cls()

    def apply(self, pixels: Picture) -> Picture:
        """[H, W, 3] as stored → as shown, [H, W, 3] or [W, H, 3]."""
        return np.ascontiguousarray(np.rot90(pixels[:, ::-1] if self.mirrored else pixels, -self.quarter_turns))

    def swap(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) as stored → as shown, and back."""
        return size[::-1] if self.quarter_turns % 2 else size


def shown_size(frame: VideoFrame) -> tuple[int, int]:
    """(width, height) of a frame as it is shown."""
    return Orientation.of_frame(frame).swap((frame.width, frame.height))


def shown_pixels(frame: VideoFrame, size: tuple[int, int]) -> Picture:
    """A frame as it is shown, [height, width, 3] uint8 RGB, resized if its own size is not `size` (width, height).

    Raises:
        VaExportError: its colours are coded in a way that is not converted.
    """
    import av

    orientation = Orientation.of_frame(frame)
    width, height = orientation.swap(size)
    # Values that mean nothing are what decoders took them for before there were names for them: no tag.
    if frame.colorspace == _RESERVED:
        frame.colorspace = _UNTAGGED
    if frame.color_range not in (0, 1, 2):
        frame.color_range = _UNKNOWN_RANGE
    try:
        pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VaExportError(
            f"frames in {frame.format.name} with colour matrix {int(frame.colorspace)} of AVColorSpace cannot be"
            f" converted to RGB: {error}",
            where="video",
            fix="convert the clip: ffmpeg -i CLIP -pix_fmt yuv420p -colorspace bt709 NEW.mp4",
        ) from error
    return orientation.apply(pixels.astype(np.uint8, copy=False))


def display_notes(frame: VideoFrame) -> list[str]:
    """What a viewer should know of how the first frame was brought onto the screen."""
    notes = []
    orientation = Orientation.of_frame(frame)
    if orientation.off_by > _ANGLE_TOLERANCE:
        notes.append(
            f"the clip asks to be turned by {orientation.off_by:.0f} degrees beside a quarter turn: that was left out"
        )
    if not orientation.exact:
        notes.append("the clip was turned as its angle says; whether it is mirrored could not be read")
    if frame.color_trc in _HDR:
        notes.append(f"the clip is HDR ({_HDR[frame.color_trc]}); it was not tone-mapped, so pictures look flat")
    return notes
