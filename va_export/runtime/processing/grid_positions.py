"""Positions with three axes, time, row and column (M-RoPE, arXiv 2409.12191; time in seconds: arXiv 2502.13923).

Text counts up on all axes together. The tokens of a video or an image start where the text before ended: rows and
columns count up within the picture, time by the seconds between grids. What follows starts one beyond the largest
position so far on any axis. Hugging Face's classes of transformers 5.17 to 5.24 do otherwise in two places (whole
seconds only; the extent in time is forgotten where text goes on), so positions are computed here, as the model was
trained with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
AXES = 3


@dataclass(frozen=True)
class GridRun:
    """The visual tokens of a video or an image in a prompt.

    Attributes:
        start: the first one's place.
        grid: steps of time, rows and columns of tokens.
        seconds: between two steps.
    """

    start: int
    grid: tuple[int, int, int]
    seconds: float

    @property
    def stop(self) -> int:
        """The place after the last one."""
        return self.start + int(np.prod(self.grid))


def grid_positions(length: int, runs: Sequence[GridRun], tokens_per_second: float) -> tuple[Int64, int]:
    """Positions (3, 1, length) of a prompt, and the position of the token after it on every axis."""
    positions = np.empty((AXES, length), np.int64)
    place = following = 0
    for run in runs:
        following = _count(positions, place, run.start, following)
        t, h, w = run.grid
        # float32, factor by factor, as PyTorch multiplies whole numbers with a float: it decides what is cut off.
        times = np.arange(t).astype(np.float32) * np.float32(run.seconds) * np.float32(tokens_per_second)
        axes = np.meshgrid(times.astype(np.int64), np.arange(h), np.arange(w), indexing="ij")
        positions[:, run.start : run.stop] = following + np.stack([axis.reshape(-1) for axis in axes])
        place, following = run.stop, int(positions[:, run.start : run.stop].max()) + 1
    following = _count(positions, place, length, following)
    return positions[:, None], following


def _count(positions: Int64, start: int, stop: int, first: int) -> int:
    positions[:, start:stop] = first + np.arange(stop - start)
    return first + stop - start
