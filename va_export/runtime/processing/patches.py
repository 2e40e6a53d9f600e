"""Frames as patches: sizes that patches fill, patches in the order of their tokens, and which patches see each other.

A grid is the patches of `frames_per_grid` consecutive frames, t × h × w counted in patches for a whole video. Patches
come in merge order: time, then blocks of merge × merge patches row by row, and the patches of a block row by row, so
that the patches of one visual token lie together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from va_export.errors import VaExportError

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Values = npt.NDArray[Any]
Grid = tuple[int, int, int]

_LARGEST_ASPECT = 200  # as qwen-vl-utils has it: beyond, one side vanishes


def fit_size(height: int, width: int, multiple: int, least: int, most: int) -> tuple[int, int]:
    """Height and width, multiples of `multiple`, of about the same shape and with `least` to `most` pixels
    (`smart_resize` of qwen-vl-utils). A half is rounded to the even number, as Python rounds.

    Raises:
        VaExportError: one side is more than 200 times the other.
    """
    if max(height, width) > _LARGEST_ASPECT * min(height, width):
        raise VaExportError(
            f"a picture of {width} × {height} is more than {_LARGEST_ASPECT} times as long as it is wide",
            where="frames",
            fix="cut it into pieces",
        )
    fitted = [max(multiple, round(side / multiple) * multiple) for side in (height, width)]
    if math.prod(fitted) > most:
        scale = math.sqrt(height * width / most)
        fitted = [max(multiple, math.floor(side / scale / multiple) * multiple) for side in (height, width)]
    elif math.prod(fitted) < least:
        scale = math.sqrt(least / (height * width))
        fitted = [math.ceil(side * scale / multiple) * multiple for side in (height, width)]
    return fitted[0], fitted[1]


def to_patches(frames: Values, patch: int, merge: int, frames_per_grid: int) -> tuple[Values, Grid]:
    """Frames [F, H, W, C] → patches (t·h·w, C·frames_per_grid·patch²) in merge order, and the grid.

    Where the frames do not fill the last grid, the last frame is repeated.
    """
    missing = -len(frames) % frames_per_grid
    frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
    count, height, width, channels = frames.shape
    grid = (count // frames_per_grid, height // patch, width // patch)
    t, h, w = grid
    blocks = frames.reshape(t, frames_per_grid, h // merge, merge, patch, w // merge, merge, patch, channels)
    ordered = blocks.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)  # t, h/m, w/m, m, m, C, frames, patch, patch
    return np.ascontiguousarray(ordered.reshape(t * h * w, -1)), grid


def patch_positions(grids: Sequence[Grid], merge: int) -> Int64:
    """Row and column of every patch in its picture, (P, 2)."""
    places = []
    for t, h, w in grids:
        rows, columns = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
        both = np.stack([rows, columns], axis=-1).reshape(h // merge, merge, w // merge, merge, 2)
        places.append(np.tile(both.transpose(0, 2, 1, 3, 4).reshape(-1, 2), (t, 1)))
    return np.concatenate(places).astype(np.int64)


def interpolated_positions(grids: Sequence[Grid], merge: int, side: int) -> tuple[Int64, Float32]:
    """Where each patch lies on a square of learned positions that is stretched over its picture, corner to corner.

    Args:
        side: of the square.

    Returns:
        places (P, 4): the four learned positions around it, row by row; weights (P, 4): of each, bilinear.
    """
    sizes = np.concatenate([np.tile((h, w), (t * h * w, 1)) for t, h, w in grids])  # (P, 2)
    # float32, one operation after the other, as PyTorch computes them.
    exact = (
        patch_positions(grids, merge).astype(np.float32)
        * np.float32(side - 1)
        / np.maximum(sizes - 1, 1).astype(np.float32)
    )
    first = np.floor(exact).astype(np.int64)
    beyond = exact - first.astype(np.float32)
    rows, columns = (np.stack([first[:, axis], np.minimum(first[:, axis] + 1, side - 1)], axis=-1) for axis in (0, 1))
    near = 1 - np.abs(beyond[..., None] - np.arange(2, dtype=np.float32))  # (P, axis, the one before and after)
    row_weights, column_weights = near[:, 0], near[:, 1]
    places = rows[:, :, None] * side + columns[:, None, :]
    weights = row_weights[:, :, None] * column_weights[:, None, :]
    return places.reshape(-1, 4), np.ascontiguousarray(weights.reshape(-1, 4), dtype=np.float32)


def whole_grids(grids: Sequence[Grid]) -> list[Int64]:
    """The patches of each step of time, by their places in merge order."""
    found, first = [], 0
    for t, h, w in grids:
        for _ in range(t):
            found.append(np.arange(first, first + h * w, dtype=np.int64))
            first += h * w
    return found


def windows(grids: Sequence[Grid], merge: int, side: int) -> list[Int64]:
    """The patches of each window of side × side tokens, cut off at the right and at the bottom, by their places in
    merge order."""
    found, first = [], 0
    for t, h, w in grids:
        rows, columns = h // merge, w // merge
        tokens = np.arange(rows * columns, dtype=np.int64).reshape(rows, columns)
        cut = [
            tokens[top : top + side, left : left + side].reshape(-1)
            for top in range(0, rows, side)
            for left in range(0, columns, side)
        ]
        within = [(window[:, None] * merge**2 + np.arange(merge**2)).reshape(-1) for window in cut]
        for _ in range(t):
            found += [first + window for window in within]
            first += h * w
    return found


def ragged_rows(groups: Sequence[Int64], width: int) -> tuple[Int64, Int64, Int64]:
    """Groups of places as rows of one width, which attention takes as a batch with lengths.

    Args:
        groups: every place 0 … P−1 in exactly one of them.

    Returns:
        rows (R, width), filled up with 0; lengths (R,); slots (P,), where each place stands in the flattened rows.
    """
    rows = np.zeros((len(groups), width), np.int64)
    lengths = np.array([len(group) for group in groups], np.int64)
    slots = np.empty(int(lengths.sum()), np.int64)
    for number, group in enumerate(groups):
        rows[number, : len(group)] = group
        slots[group] = number * width + np.arange(len(group))
    return rows, lengths, slots


def tower_inputs(
    grids: Sequence[Grid], merge: int, window: int | None, position_side: int | None
) -> dict[str, npt.NDArray[Any]]:
    """What a vision component takes beside the patches, which come as (visual tokens, merge², values).

    Args:
        window: tokens of a window's side; None without windows.
        position_side: of the square of learned positions; None without such.
    """
    unit, whole = merge**2, whole_grids(grids)
    groups = {"grid": (whole, max(map(len, whole)))}
    if window is not None:
        groups["window"] = windows(grids, merge, window), unit * window**2
    inputs: dict[str, npt.NDArray[Any]] = {"patch_positions": patch_positions(grids, merge).reshape(-1, unit, 2)}
    for name, (places, width) in groups.items():
        rows, lengths, slots = ragged_rows(places, width)
        inputs |= {f"{name}_rows": rows, f"{name}_lengths": lengths, f"{name}_slots": slots.reshape(-1, unit)}
    if position_side is not None:
        learned, weights = interpolated_positions(grids, merge, position_side)
        inputs |= {"learned_places": learned.reshape(-1, unit, 4), "learned_weights": weights.reshape(-1, unit, 4)}
    return inputs
