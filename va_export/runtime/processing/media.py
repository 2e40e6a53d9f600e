"""What a prompt may be about: videos and images, as arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from va_export.errors import VaExportError

UInt8 = npt.NDArray[np.uint8]
Frames = UInt8 | Sequence[UInt8]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Video:
    """Frames [F, H, W, 3] (or as many [H, W, 3]), RGB uint8, in order of time.

    Attributes:
        seconds_per_grid: between two steps of the model's time, where it has such; None: the bundle's own.
        timestamps: seconds of each frame, for models whose prompts say them, as `read_frames` gives them; None: frames
            are `seconds_per_grid` / frames of a step apart.
    """

    frames: Frames
    seconds_per_grid: float | None = None
    timestamps: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.timestamps is None:
            return
        try:
            times = np.asarray(self.timestamps, dtype=np.float64)
        except (TypeError, ValueError):
            times = np.array([np.nan])
        if times.ndim != 1 or not np.isfinite(times).all() or (times < 0).any() or (np.diff(times) < 0).any():
            raise VaExportError(
                f"{self.timestamps!r:.80} are not the seconds of frames in order of time",
                where="timestamps",
                fix="give one number for each frame, from 0 up, as read_frames gives them",
            )


@dataclass(frozen=True)
class Image:
    """A picture [H, W, 3], RGB uint8."""

    pixels: UInt8


Medium = Video | Image
Media = Frames | Medium | Sequence[Medium]


def as_media(given: Media) -> list[Medium]:
    """Videos and images in the order of the prompt; bare frames are one video.

    Raises:
        VaExportError: nothing of that kind.
    """
    if isinstance(given, Video | Image):
        return [given]
    if not hasattr(given, "__len__"):
        raise VaExportError(
            f"a {type(given).__name__} is neither frames nor a video or an image",
            where="frames",
            fix="give frames as read_frames reads them, or Video and Image of va_export.runtime.processing",
        )
    if not isinstance(given, np.ndarray) and len(given) and all(isinstance(one, Video | Image) for one in given):
        return [one for one in given if isinstance(one, Video | Image)]
    return [Video(given)]  # type: ignore[arg-type]


def pictures(frames: Sequence[Any] | UInt8) -> list[UInt8]:
    """Frames one by one.

    Raises:
        VaExportError: none, or one of another shape or type.
    """
    if not hasattr(frames, "__len__"):
        raise VaExportError(f"frames are a {type(frames).__name__}", where="frames", fix="give an array or a list")
    checked = [np.asarray(frame) for frame in frames]
    for picture in checked:
        if picture.ndim != 3 or picture.shape[-1] != 3 or picture.dtype != np.uint8 or picture.size == 0:
            raise VaExportError(
                f"a frame is {list(picture.shape)} {picture.dtype}, expected [height, width, 3] uint8",
                where="frames",
                fix="give frames as read_frames reads them: RGB, 0 to 255",
            )
    if not checked:
        raise VaExportError("there are no frames", where="frames", fix="give at least one")
    return checked


def resize(frames: Sequence[UInt8], height: int, width: int, resample: str) -> UInt8:
    """Frames of any sizes, each resized to [height, width], as Pillow computes it; [F, height, width, 3]."""
    from PIL import Image as Pillow

    filter_ = Pillow.Resampling.BICUBIC if resample == "bicubic" else Pillow.Resampling.BILINEAR
    return np.stack(
        _in_threads(lambda frame: np.asarray(Pillow.fromarray(frame).resize((width, height), filter_)), frames)
    )


def check_normalisation(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Hold the mean and the deviation of channels in [0, 1] against what any can be.

    Raises:
        ValueError: a mean outside of [0, 1], or a deviation that is not above a thousandth: pixels would become huge.
    """
    if not all(0 <= value <= 1 for value in mean) or not all(1e-3 <= value <= 10 for value in std):
        raise ValueError(f"mean {mean} and std {std} are not those of channels in [0, 1]")


def normalise(
    values: UInt8, mean: tuple[float, float, float], std: tuple[float, float, float], channel_axis: int
) -> npt.NDArray[np.float32]:
    """(value / 255 − mean) / std, float32, by colour channel: the same bits, from a table of the 256 values."""
    fractions = np.arange(256, dtype=np.float32) / np.float32(255.0)
    tables = [(fractions - np.float32(m)) / np.float32(s) for m, s in zip(mean, std, strict=True)]
    normalised = np.empty(values.shape, np.float32)
    given, filled = (np.moveaxis(array, channel_axis, 1) for array in (values, normalised))

    def fill(place: int) -> None:
        for channel, table in enumerate(tables):
            filled[place, channel] = table[given[place, channel]]

    _in_threads(fill, range(len(values)))
    return normalised


def _in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """What a function that does not hold the interpreter's lock makes of each item."""
    if len(items) == 1:
        return [function(items[0])]
    with ThreadPoolExecutor() as pool:
        return list(pool.map(function, items))
