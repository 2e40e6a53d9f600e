"""Bundles of both layouts reproduce the numbers of the official code (tests/data/golden/llava_*), from its arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from asked_twice import asked_twice
from command_line import va_export
from llava_layout import GOLDEN, golden_checkpoint

from va_export.runtime.bundle import Bundle
from va_export.runtime.generation import Generation

# checkpoint → the run that it belongs to: transformers' layout holds the weights of the original's.
RUNS = {
    "llava_video_tiny": "llava_video_tiny",
    "llava_onevision_tiny": "llava_onevision_tiny",
    "llava_onevision_tiny_hf": "llava_onevision_tiny",
}


@pytest.fixture(scope="module", params=RUNS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def golden(name: str) -> Mapping[str, np.ndarray]:
    with np.load(GOLDEN / RUNS[name] / "golden.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


@pytest.fixture(scope="module")
def bundle(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(name) / "bundle"
    options = ("--subspaces", 4, "--fp32", "--onnx-only", "--latency-iterations", 0, "--new-tokens", 2)
    checkpoint = golden_checkpoint(name, directory.parent)
    outcome = va_export("--output", directory, "--model", checkpoint, *options)
    assert outcome.code == 0, outcome.stderr
    return directory


def official(opened: Bundle, golden: Mapping[str, np.ndarray], **changed: object) -> Generation:
    """The golden prompt, one placeholder for the whole video; its gains, its tokens."""
    ids = golden["input_ids"]
    placeholder = opened.processing.image_token_id
    arguments = {
        "pixel_values": golden["pixel_values"],
        "input_ids": np.where(ids < 0, placeholder, ids),
        "forced_tokens": np.append(golden["tokens"], 0),
        "key_log_gain": golden["key_log_gain_official"],
        "value_gain": golden["gain_v"],
        "return_logits": True,
    }
    return opened.generate(**{**arguments, **changed})  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_float32_is_the_official_run(backend: str, bundle: Path, golden: Mapping[str, np.ndarray]) -> None:
    """float32 on both sides; sums in another order, values of order 1 to 5."""
    with Bundle.open(bundle, backend) as opened:
        found = official(opened, golden)
        np.testing.assert_allclose(found.visual_tokens, golden["visual_tokens"], rtol=0, atol=2e-5)
        np.testing.assert_allclose(found.logits, golden["decode_logits"], rtol=0, atol=2e-5)
        gains, fed = (golden["key_log_gain_official"], golden["gain_v"]), np.append(golden["tokens"], 0)
        ids = np.where(golden["input_ids"] < 0, opened.processing.image_token_id, golden["input_ids"])
        again = asked_twice(opened, ids, {"pixel_values": golden["pixel_values"]}, gains, fed)
        np.testing.assert_allclose(again, golden["decode_logits"], rtol=0, atol=2e-5)
        plain = official(
            opened, golden, anchors=False, key_log_gain=None, value_gain=None, forced_tokens=None, max_new_tokens=1
        )
        np.testing.assert_allclose(plain.logits, golden["plain_last_logits"], rtol=0, atol=2e-5)


def test_newlines_are_scored_like_visual_tokens(name: str, bundle: Path, golden: Mapping[str, np.ndarray]) -> None:
    with Bundle.open(bundle) as opened:
        placeholder = opened.processing.image_token_id
        ids = np.where(golden["input_ids"] < 0, placeholder, golden["input_ids"])
        prepared = opened.processing.prepare_ids(ids, {"pixel_values": golden["pixel_values"]}, 8)
    count = len(golden["visual_tokens"])
    assert prepared.is_scored.sum() == prepared.is_visual.sum() == count
    start = int(golden["visual_start"])
    assert prepared.is_visual[0, start : start + count].all()
    assert prepared.grid == ((8, 4, 5) if name == "llava_video_tiny" else (8, 4, 4))
    assert (prepared.input_ids >= 0).all()  # what stands for the video is no id of the vocabulary
