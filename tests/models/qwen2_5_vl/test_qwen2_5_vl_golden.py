"""A bundle reproduces the numbers of the official code (tests/data/golden/qwen2_5_vl_tiny), from its own arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from asked_twice import asked_twice
from command_line import va_export

from va_export.anchor.scoring import subspace_score
from va_export.runtime.bundle import Bundle
from va_export.runtime.generation import Generation

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "qwen2_5_vl_tiny"


@pytest.fixture(scope="module")
def golden() -> Mapping[str, np.ndarray]:
    with np.load(GOLDEN / "golden.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """precision → the golden checkpoint's bundle, ONNX only."""
    made: dict[str, Path] = {}

    def export(precision: str) -> Path:
        if precision not in made:
            directory = tmp_path_factory.mktemp(precision) / "bundle"
            options = ("--subspaces", 8, "--precision", precision, "--onnx-only", "--latency-iterations", 0)
            options += ("--max-pixels", 25088, "--new-tokens", 2)
            outcome = va_export("--output", directory, "--model", GOLDEN, *options)
            assert outcome.code == 0, outcome.stderr
            made[precision] = directory
        return made[precision]

    return export


def official(opened: Bundle, golden: Mapping[str, np.ndarray], **changed: object) -> Generation:
    """The golden prompt: its patches, its gains, its tokens; positions are ours."""
    arguments = {
        "pixel_values": golden["pixel_values_videos"],
        "grid_thw": golden["video_grid_thw"],
        "seconds_per_grid": golden["second_per_grid_ts"],
        "input_ids": golden["input_ids"],
        "forced_tokens": np.append(golden["tokens"], 0),
        "key_log_gain": golden["key_log_gain_official"],
        "value_gain": golden["gain_v"],
        "return_logits": True,
    }
    return opened.generate(**{**arguments, **changed})  # type: ignore[arg-type]


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other))


@pytest.mark.parametrize(
    ("backend", "attention"), [("onnxruntime", "plugin"), ("onnxruntime", "native"), ("torch", None)]
)
def test_float32_is_the_official_run(
    backend: str, attention: str | None, bundle: Callable[[str], Path], golden: Mapping[str, np.ndarray]
) -> None:
    """float32 on both sides; sums in another order, through four blocks and two layers, values of order 1 to 5."""
    with Bundle.open(bundle("fp32"), backend, attention=attention) as opened:
        found = official(opened, golden)
        np.testing.assert_allclose(found.visual_tokens, golden["visual_tokens"], rtol=0, atol=2e-5)
        np.testing.assert_allclose(found.logits, golden["decode_logits"], rtol=0, atol=2e-5)
        gains, fed = (golden["key_log_gain_official"], golden["gain_v"]), np.append(golden["tokens"], 0)
        given = {
            "pixel_values": golden["pixel_values_videos"],
            "grid_thw": golden["video_grid_thw"],
            "seconds_per_grid": golden["second_per_grid_ts"],
        }
        again = asked_twice(opened, golden["input_ids"], given, gains, fed)
        np.testing.assert_allclose(again, golden["decode_logits"], rtol=0, atol=2e-5)
        plain = official(
            opened, golden, anchors=False, key_log_gain=None, value_gain=None, forced_tokens=None, max_new_tokens=1
        )
        np.testing.assert_allclose(plain.logits, golden["plain_last_logits"], rtol=0, atol=2e-5)


def test_tokens_are_the_official_ones_with_scores_of_our_own(
    bundle: Callable[[str], Path], golden: Mapping[str, np.ndarray]
) -> None:
    with Bundle.open(bundle("fp32")) as opened:
        found = official(
            opened, golden, key_log_gain=None, value_gain=None, forced_tokens=None, max_new_tokens=9, ignore_stop=True
        )
    assert found.tokens[:8].tolist() == golden["tokens"].tolist()
    # The official score is of float32 tokens handed to the solver, and rounded to bfloat16 before it is used.
    np.testing.assert_allclose(found.sharing_score, golden["sharing_score"], atol=1e-3)
    assert found.logits is not None
    np.testing.assert_allclose(found.logits, golden["decode_logits"], atol=2e-2)


def test_float16_keeps_the_directions(bundle: Callable[[str], Path], golden: Mapping[str, np.ndarray]) -> None:
    with Bundle.open(bundle("fp16")) as opened:
        found = official(opened, golden)
    assert found.visual_tokens is not None and found.logits is not None
    assert cosine(found.visual_tokens, golden["visual_tokens"]) >= 0.999
    assert min(cosine(*rows) for rows in zip(found.logits, golden["decode_logits"], strict=True)) >= 0.999


def test_frames_become_the_official_patches(bundle: Callable[[str], Path], golden: Mapping[str, np.ndarray]) -> None:
    with Bundle.open(bundle("fp32")) as opened:
        given = opened.processing.given(golden["frames"])
    assert (given["grid_thw"] == golden["video_grid_thw"]).all()
    np.testing.assert_allclose(given["pixel_values"], golden["pixel_values_videos"], rtol=0, atol=1e-6)


def test_positions_of_prompt_and_answer(bundle: Callable[[str], Path], golden: Mapping[str, np.ndarray]) -> None:
    with Bundle.open(bundle("fp32")) as opened:
        arrays = {"pixel_values": golden["pixel_values_videos"], "grid_thw": golden["video_grid_thw"]}
        prepared = opened.processing.prepare_ids(golden["input_ids"], arrays, 8)
    assert (prepared.position_ids == golden["position_ids"]).all()
    assert (golden["decode_position_ids"][:, 0] == prepared.next_position + np.arange(8)).all()


def test_the_score_is_the_official_solvers(golden: Mapping[str, np.ndarray]) -> None:
    scored = subspace_score(golden["visual_tokens"], n_subspaces=8, dtype="float64", return_details=True)
    np.testing.assert_allclose(scored.self_expression, golden["self_expression_f64"], rtol=0, atol=1e-6)
    assert abs(scored.iterations - int(golden["admm_iterations_f64"])) <= 1
