"""Positions in time, row and column, against those of the official code (tests/data/golden/qwen2_5_vl_tiny)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from va_export.runtime.processing.grid_positions import GridRun, grid_positions

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "qwen2_5_vl_tiny"
VIDEO, IMAGE = 593, 592


def runs_of(ids: np.ndarray, arrays: dict[str, np.ndarray]) -> list[GridRun]:
    """Videos and images where the ids have them."""
    seconds = list(arrays["seconds"])
    waiting = {VIDEO: list(arrays["video"]), IMAGE: list(arrays.get("image", ()))}
    runs, place = [], 0
    while place < len(ids):
        if ids[place] not in waiting:
            place += 1
            continue
        t, h, w = waiting[ids[place]].pop(0)
        run = GridRun(place, (t, h // 2, w // 2), seconds.pop(0) if ids[place] == VIDEO else 0.0)
        runs.append(run)
        place = run.stop
    return runs


@pytest.mark.parametrize("case", range(5))
def test_positions_are_the_official_codes(case: int) -> None:
    """Fractional seconds, videos longer in time than in space, two videos, an image and a video."""
    with np.load(GOLDEN / "positions.npz") as stored:
        ids = stored[f"input_ids_{case}"][0]
        names = {"video": f"video_grid_thw_{case}", "seconds": f"second_per_grid_ts_{case}"}
        arrays = {key: stored[name] for key, name in names.items()}
        if f"image_grid_thw_{case}" in stored:
            arrays["image"] = stored[f"image_grid_thw_{case}"]
        expected, delta = stored[f"position_ids_{case}"], stored[f"rope_deltas_{case}"].item()
    positions, following = grid_positions(len(ids), runs_of(ids, arrays), tokens_per_second=2)
    assert (positions == expected).all()
    assert following == len(ids) + delta


def test_text_alone_counts_up_on_every_axis() -> None:
    positions, following = grid_positions(4, [], 2)
    assert positions[:, 0].tolist() == [[0, 1, 2, 3]] * 3 and following == 4
