"""InternVL2-8B's width, two layers of each tower: what a real model asks of memory, engines and precision."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from va_export.bundle.manifest import read_manifest
from va_export.engine.inspect_engine import find_plugin_records
from va_export.evidence.processes import watch
from va_export.models import published_config
from va_export.ops.declaration import DOMAIN

REPOSITORY = Path(__file__).parents[1]
# What one process may hold. Two layers, embedding and head are 1.25·10⁹ weights: 2.5 GB in float16, 5 in float32.
MOST_MEMORY = 8e9


@pytest.fixture(scope="module")
def cut_config() -> dict[str, Any]:
    """The published configuration: hidden 4096, 32 heads over 8, feed-forward 14336, vocabulary 92553; a vision tower
    of width 1024 at 448 pixels. Two layers of each."""
    config: dict[str, Any] = json.loads(json.dumps(published_config("OpenGVLab/InternVL2-8B")))
    config["llm_config"]["num_hidden_layers"] = config["vision_config"]["num_hidden_layers"] = 2
    return config


@pytest.mark.large
def test_exports_builds_and_agrees_within_the_memory(
    cut_config: dict[str, Any], tmp_path: Path, can_build_engines: bool
) -> None:
    if psutil.virtual_memory().available < MOST_MEMORY:
        pytest.skip("this machine has not the 8 GB left that the export may take")
    llm = cut_config["llm_config"]
    assert (llm["hidden_size"], llm["intermediate_size"], llm["vocab_size"]) == (4096, 14336, 92553)
    sizes, output = tmp_path / "sizes", tmp_path / "bundle"
    sizes.mkdir()
    (sizes / "config.json").write_text(json.dumps(cut_config))
    options = ["--model", str(sizes), "--weights", "random", "--fp16", "-o", str(output)]
    options += ["--target", "sm89"] if can_build_engines else ["--onnx-only"]
    # One frame is 256 visual tokens, and enough for every shape; the score's cost is not what is asked here.
    options += ["--frames", "1", "--max-frames", "1", "--subspaces", "4", "--new-tokens", "2"]
    options += ["--max-input-len", "512", "--max-kv-cache-capacity", "1024", "--latency-iterations", "0"]
    with (tmp_path / "log").open("w") as log:
        result = watch(
            [sys.executable, "-c", "from va_export.cli.export import main; main()", *options],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
    assert result.code == 0, (tmp_path / "log").read_text()
    assert result.peak_rss < MOST_MEMORY, result
    manifest = read_manifest(output).data
    assert manifest["parity"] == {"passed": True} and manifest["model"]["weights"] == "random"
    parity = json.loads((output / "parity.json").read_text())
    assert {(run["backend"], run["attention"]) for run in parity["runs"]} == {
        ("onnxruntime", "plugin"),
        ("onnxruntime", "native"),
    }
    if can_build_engines:
        engine = output / manifest["components"]["decoder"]["engines"]["tensorrt-rtx"]["file"]
        assert len(find_plugin_records(engine, "AnchoredAttention", "1", DOMAIN)) == 4  # two layers in two profiles
