"""The clips of public bug reports that lie beside the repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from refusals import refused

from va_export.runtime.video import read_frames

PLACES = [parent / "shared" / "cases" for parent in Path(__file__).parents[4:]]


def case(folder: str, name: str) -> Path:
    for place in PLACES:
        if (place / folder / name).is_file():
            return place / folder / name
    pytest.skip(f"no shared/cases/{folder}/{name} beside this checkout")


def test_rotation() -> None:
    upright, turned = (read_frames(case("rotation", name), 4) for name in ("base.mp4", "rot90.mp4"))
    assert turned.pixels.shape[1:3] == upright.pixels.shape[2:0:-1]
    assert turned.reading.rotation == 270
    # The same stream, so the same pixels; a quarter turn to the left takes three to the right.
    np.testing.assert_array_equal(turned.pixels, np.stack([np.rot90(frame, 1) for frame in upright.pixels]))


def test_truncated_mp4() -> None:
    path = case("truncated_mp4", "trunc_fast.mp4")
    with refused(path, "60 frames"):
        read_frames(path, 8)
    reading = read_frames(path, 8, allow_truncated=True).reading
    assert reading.truncated and reading.promised == "60 frames" and reading.decoded == 13


def test_cover_art_first() -> None:
    frames = read_frames(case("cover_art_first", "covr_first.mp4"), 8)
    assert (frames.reading.stream, frames.reading.decoded) == (1, 24)


def test_resolution_change() -> None:
    frames = read_frames(case("resolution_change", "reschange.webm"), 8)
    assert frames.pixels.shape == (8, 64, 96, 3) and frames.reading.decoded == 48
    assert any("24 of 48" in note for note in frames.reading.notes)


def test_colon_in_name(monkeypatch: pytest.MonkeyPatch) -> None:
    path = case("colon_in_name", "2024-01-01T12:30:00.mp4")
    monkeypatch.chdir(path.parent)
    assert read_frames(path.name, 8).reading.decoded == 24
