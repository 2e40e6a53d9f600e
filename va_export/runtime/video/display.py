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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from va_export.errors import VaExportError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

Picture = npt.NDArray[np.uint8]

_RESERVED, _UNTAGGED, _UNKNOWN_RANGE = 3, 2, 0  # AVColorSpace, AVColorSpace, AVColorRange
_HDR = {16: "PQ", 18: "HLG"}  # AVColorTransferCharacteristic
_EXIF_ORIENTATION = 0x0112
_EXIF = {  # clockwise quarter turns after mirroring, mirrored
    1: (0, False),
    2: (0, True),
    3: (2, False),
    4: (2, True),
    5: (3, True),
    6: (1, False),
    7: (1, True),
    8: (3, False),
}
_ANGLE_TOLERANCE = 1.0  # degrees; the same as ffmpeg's


@dataclass(frozen=True)
class Orientation:
    """How a stored frame is turned into the shown one: mirrored left to right first, then turned clockwise.

    Attributes:
        quarter_turns: clockwise, 0 to 3.
        off_by: degrees between the matrix and the nearest quarter turn.
    """

    quarter_turns: int = 0
    mirrored: bool = False
    off_by: float = 0.0

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
    def of_frame(cls, frame: VideoFrame, path: Path) -> Orientation:
        """Of the display matrix that the container or the stream gave a frame of this file."""
        try:
            side_data: Iterable[Any] = frame.side_data
            matrices = [bytes(data) for data in side_data if data.type.name == "DISPLAYMATRIX"]
        except ValueError:  # PyAV does not know all kinds of side data that FFmpeg does, and then shows none
            return cls(*_EXIF[exif]) if (exif := _exif_orientation(path)) else cls(round(-frame.rotation / 90) % 4)
        return cls.of_matrix(struct.unpack("=9i", matrices[0])) if matrices and len(matrices[0]) == 36 else cls()

    def apply(self, pixels: Picture) -> Picture:
        """[H, W, 3] as stored → as shown, [H, W, 3] or [W, H, 3]."""
        return np.ascontiguousarray(np.rot90(pixels[:, ::-1] if self.mirrored else pixels, -self.quarter_turns))

    def swap(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) as stored → as shown, and back."""
        return size[::-1] if self.quarter_turns % 2 else size


def _exif_orientation(path: Path) -> int | None:
    """A photograph's, 1 to 8; None of what Pillow does not open."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            orientation = image.getexif().get(_EXIF_ORIENTATION)
    except (OSError, ValueError, SyntaxError):
        return None
    return orientation if orientation in _EXIF else None


def shown_pixels(frame: VideoFrame, orientation: Orientation, size: tuple[int, int]) -> Picture:
    """A frame as it is shown, [height, width, 3] uint8 RGB, resized if its own size is not `size` (width, height).

    Raises:
        VaExportError: its colours are coded in a way that is not converted.
    """
    import av

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


def display_notes(frame: VideoFrame, orientation: Orientation) -> list[str]:
    """What a viewer should know of how the first frame was brought onto the screen."""
    notes = []
    if orientation.off_by > _ANGLE_TOLERANCE:
        notes.append(
            f"the clip asks to be turned by {orientation.off_by:.0f} degrees beside a quarter turn: that was left out"
        )
    if frame.color_trc in _HDR:
        notes.append(f"the clip is HDR ({_HDR[frame.color_trc]}); it was not tone-mapped, so pictures look flat")
    return notes
