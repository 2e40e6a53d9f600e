"""Sizes, patches, windows and ragged rows, worked out here by hand."""

from __future__ import annotations

import numpy as np
import pytest
from refusals import refused

from va_export.runtime.processing.patches import (
    fit_size,
    patch_positions,
    ragged_rows,
    to_patches,
    whole_grids,
    windows,
)


@pytest.mark.parametrize(
    ("size", "limits", "fitted"),
    [
        ((480, 640), (200704, 602112), (476, 644)),  # the official evaluation's sizes: 391 tokens a grid
        ((1440, 1920), (200704, 602112), (672, 896)),  # 768 tokens
        ((112, 224), (3136, 12845056), (112, 224)),
        ((42, 70), (784, 10**7), (56, 56)),  # halves go to the even number of steps: 1.5 → 2, 2.5 → 2
        ((10, 10), (3136, 10**7), (56, 56)),
        ((1, 199), (784, 10**7), (28, 196)),
        ((100, 100), (784, 784), (28, 28)),
    ],
)
def test_sizes_are_those_of_the_original(
    size: tuple[int, int], limits: tuple[int, int], fitted: tuple[int, int]
) -> None:
    assert fit_size(*size, 28, *limits) == fitted


@pytest.mark.parametrize("seed", range(3))
def test_a_fitted_size_stays_within_its_limits(seed: int) -> None:
    random = np.random.default_rng(seed)
    for height, width in random.integers(20, 3000, (200, 2)).tolist():
        h, w = fit_size(height, width, 28, 200704, 602112)
        assert h % 28 == w % 28 == 0 and 0.8 * 200704 <= h * w <= 602112
        assert fit_size(h, w, 28, 200704, 602112) == (h, w)  # once fitted, it fits


def test_a_thread_is_no_picture() -> None:
    with refused("frames", 10, 2100):
        fit_size(10, 2100, 28, 784, 10**6)


def test_patches_of_a_token_lie_together() -> None:
    frames = np.arange(2 * 8 * 12 * 3, dtype=np.float32).reshape(2, 8, 12, 3)
    patches, grid = to_patches(frames, patch=2, merge=2, frames_per_grid=2)
    assert grid == (1, 4, 6) and patches.shape == (24, 3 * 2 * 4)
    rows_columns = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3)]
    for patch, (row, column) in zip(patches, rows_columns, strict=False):
        block = frames[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]  # [frames, 2, 2, C]
        assert (patch == block.transpose(3, 0, 1, 2).reshape(-1)).all()
    assert patch_positions([grid], 2)[:6].tolist() == [list(place) for place in rows_columns]


def test_an_odd_last_frame_is_repeated() -> None:
    frames = np.random.default_rng(0).random((3, 4, 4, 3), dtype=np.float32)
    patches, grid = to_patches(frames, 2, 2, 2)
    again, _ = to_patches(np.concatenate([frames, frames[-1:]]), 2, 2, 2)
    assert grid == (2, 2, 2) and (patches == again).all()


def test_windows_are_cut_off_at_the_edges_and_hold_every_patch_once() -> None:
    grids = [(2, 12, 10), (1, 4, 4)]
    found = windows(grids, merge=2, side=4)
    sizes = [len(window) for window in found]
    assert sizes == [64, 16, 32, 8] * 2 + [16]  # 6 × 5 tokens: 4 × 4, 4 × 1, 2 × 4 and 2 × 1 of them, four patches each
    assert sorted(np.concatenate(found).tolist()) == list(range(2 * 120 + 16))
    assert found[1][:4].tolist() == [16, 17, 18, 19]  # the fifth token of the first row
    assert [len(grid) for grid in whole_grids(grids)] == [120, 120, 16]


def test_ragged_rows_lead_there_and_back() -> None:
    groups = [np.array([3, 1]), np.array([0]), np.array([2, 5, 4])]
    rows, lengths, slots = ragged_rows(groups, 4)
    assert rows.shape == (3, 4) and lengths.tolist() == [2, 1, 3]
    values = np.arange(6) * 10
    assert (values[rows].reshape(-1)[slots] == values).all()
