"""Engines ahead of time for a tower with windows: the plugin serves its attention, within the profile."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import va_export

from va_export.bundle.manifest import read_manifest


@pytest.mark.usefixtures("needs_engines")
def test_all_engines_are_built(tmp_path: Path) -> None:
    options = ("--fp16", "--target", "sm89", "--no-parity")
    outcome = va_export("--model", "qwen2.5-vl-tiny", "-o", tmp_path / "bundle", *options)
    assert outcome.code == 0, outcome.stderr
    components = read_manifest(tmp_path / "bundle").data.components
    engines = {name: entry.engines["tensorrt-rtx"] for name, entry in components.items()}
    assert {name: engine.plugin_nodes for name, engine in engines.items()} == {
        "vision": 3,  # one a block
        "embedding": 0,
        "decoder": 2,
        "score": 1,
    }
    (profile,) = engines["vision"].profiles
    assert profile.ranges["window_rows"]["min"] == (1, 64)
    assert profile.ranges["pixel_values"]["max"] == (8 * 64, 4, 1176)  # 8 grids of 64 tokens
