"""The video benchmark compares two ways that are two, and tells where they differ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from script_files import load_script

from va_export.runtime.video import Frames


def test_both_ways_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script: Any = load_script("benchmark_video")
    monkeypatch.setattr(script, "FRAMES", 1)
    monkeypatch.setattr(script, "MINUTE", 60)
    path = script.repeat(script.encode("bikes", 10, tmp_path / "short.mp4"), tmp_path / "clip.mp4", 3)
    row = script.compare(path, 1)
    assert row["same_frames"] and row["packets"] == 180 and 0 < row["decoded"] < 90
    assert script.read(path, "linear").reading.decoded == 180
    read = script.read

    def other(path: Path, way: str) -> Frames:
        frames: Frames = read(path, way)
        return frames if way == "linear" else replace(frames, pixels=frames.pixels ^ 1)

    monkeypatch.setattr(script, "read", other)
    assert not script.compare(path, 1)["same_frames"]
