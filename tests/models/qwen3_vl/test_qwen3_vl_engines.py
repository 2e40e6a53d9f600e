"""The toy recipe from checkpoint to engines, proved in float16."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import va_export

from va_export.bundle.manifest import read_manifest

RECIPE = ("--model", "qwen3-vl-tiny", "--latency-iterations", 0)


@pytest.mark.usefixtures("needs_engines")
def test_all_engines_are_built(tmp_path: Path) -> None:
    outcome = va_export(*RECIPE, "-o", tmp_path / "bundle", "--fp16", "--target", "sm89", "--new-tokens", 3)
    assert outcome.code == 0, outcome.stderr
    assert "parity passed" in outcome.stdout + outcome.stderr
    components = read_manifest(tmp_path / "bundle").data.components
    engines = {name: entry.engines["tensorrt-rtx"] for name, entry in components.items()}
    assert {name: engine.plugin_nodes for name, engine in engines.items()} == {
        "vision": 4,  # one a block
        "embedding": 0,
        "decoder": 3,
        "score": 1,
    }
    (profile,) = engines["vision"].profiles
    assert profile.ranges["learned_places"]["max"] == (8 * 64, 4, 4)
