"""InternVL2-8B's width, two layers of each tower: what a real model asks of memory, engines and precision."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from killing import kill_and_repeat

from va_export.bundle.manifest import read_manifest
from va_export.evidence.processes import watch
from va_export.host_memory import available_memory
from va_export.models import published_config
from va_export.ops.declaration import DOMAIN
from va_export.tensorrt.inspect_engine import find_plugin_records

REPOSITORY = Path(__file__).parents[2]
# What one process may hold. Two layers, embedding and head are 1.25·10⁹ weights: 2.5 GB in float16, 5 in float32.
MOST_MEMORY = 8e9


# One frame is 256 visual tokens, and enough for every shape; the score's cost is not what is asked here.
OPTIONS = ["--weights", "random", "--fp16", "--frames", "1", "--max-frames", "1", "--subspaces", "4"]
OPTIONS += ["--new-tokens", "2", "--max-input-len", "512", "--max-kv-cache-capacity", "1024"]
OPTIONS += ["--latency-iterations", "0"]
KILLS = 10

pytestmark = [
    pytest.mark.large,
    pytest.mark.skipif(
        available_memory() < MOST_MEMORY,
        reason="this machine has not the 8 GB left that an export may take",
    ),
]


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published configuration: hidden 4096, 32 heads over 8, feed-forward 14336, vocabulary 92553; a vision tower
    of width 1024 at 448 pixels. Two layers of each."""
    config: dict[str, Any] = json.loads(json.dumps(published_config("OpenGVLab/InternVL2-8B")))
    llm = config["llm_config"]
    assert (llm["hidden_size"], llm["intermediate_size"], llm["vocab_size"]) == (4096, 14336, 92553)
    llm["num_hidden_layers"] = config["vision_config"]["num_hidden_layers"] = 2
    directory = tmp_path_factory.mktemp("sizes")
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module")
def whole(sizes: Path, tmp_path_factory: pytest.TempPathFactory, can_build_engines: bool) -> Iterator[Path]:
    """A bundle made in one run."""
    place = tmp_path_factory.mktemp("whole")
    output = place / "bundle"
    options = ["--model", str(sizes), *OPTIONS, "-o", str(output)]
    options += ["--target", "sm89"] if can_build_engines else ["--onnx-only"]
    with (place / "log").open("w") as log:
        result = watch(
            [sys.executable, "-c", "from va_export.cli.export import main; main()", *options],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
    assert result.code == 0, (place / "log").read_text()
    assert result.peak_rss < MOST_MEMORY, result
    yield output
    shutil.rmtree(place)


def test_exports_builds_and_agrees_within_the_memory(whole: Path, can_build_engines: bool) -> None:
    manifest = read_manifest(whole).data
    assert manifest.parity["passed"] is True and manifest.model.weights == "random"
    parity = json.loads((whole / "parity.json").read_text())
    assert {(run["backend"], run["attention"]) for run in parity["runs"]} == {
        ("onnxruntime", "plugin"),
        ("onnxruntime", "native"),
    }
    if can_build_engines:
        engine = whole / manifest.components["decoder"].engines["tensorrt-rtx"].file
        assert len(find_plugin_records(engine, "AnchoredAttention", "1", DOMAIN)) == 4  # two layers in two profiles


def test_killed_at_ten_random_moments_it_ends_with_the_same_bytes(sizes: Path, whole: Path, tmp_path: Path) -> None:
    # Some 350 writes, flushes and renames lie between start and end; a run that continues repeats those since the last
    # mark, 256 MB before at most.
    moments = random.Random(8).sample(range(10, 75), KILLS)
    arguments = ["--model", sizes, *OPTIONS, "--onnx-only", "--no-parity", "-o", tmp_path / "killed"]
    codes = kill_and_repeat(arguments, [*moments, None])
    assert codes == [-signal.SIGKILL] * KILLS + [0]
    killed, expected = (read_manifest(directory).data.files for directory in (tmp_path / "killed", whole))
    graphs = {name for name in expected if name.startswith("onnx/")}
    assert {"onnx/vision.onnx.data", "onnx/embedding.onnx.data", "onnx/decoder.onnx.data"} <= graphs
    assert {name: killed[name] for name in graphs} == {name: expected[name] for name in graphs}
