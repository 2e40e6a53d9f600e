"""Gains against the original implementation's, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from golden_scores import GOLDEN
from refusals import refused

from va_export.anchor import gains_from_score

SCORE = np.array([0.0, 0.5, 1.0], np.float32)


def test_gains_equal_the_originals_up_to_its_bfloat16() -> None:
    with np.load(GOLDEN / "internvl2_tiny" / "golden.npz") as golden:
        visual = golden["input_ids"][0] == golden["image_token_id"]
        _, alpha_k, alpha_v = golden["alphas"]
        score = golden["sharing_score_official_bf16"]
        key_log_gain, value_gain = gains_from_score(score, visual, len(visual), alpha_k=alpha_k, alpha_v=alpha_v)
        # bfloat16 has 8 significant bits: a relative error of 2^-8 for each of the product and the sum.
        np.testing.assert_allclose(value_gain, golden["gain_v"], rtol=2**-7)
        np.testing.assert_allclose(np.exp(key_log_gain), golden["gain_k"], rtol=2**-7)
        np.testing.assert_allclose(key_log_gain, golden["key_log_gain_official"], rtol=0, atol=2e-2)


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_gains_stand_at_the_visual_positions(kind: Any) -> None:
    mask = kind([False, True, False, True, True])
    for visual in (mask, kind([1, 3, 4])):
        key_log_gain, value_gain = gains_from_score(kind(SCORE), visual, 5, alpha_k=4.0, alpha_v=2.0)
        assert type(key_log_gain) is type(value_gain) is type(mask)
        assert str(key_log_gain.dtype).endswith("float32")
        assert str(value_gain.dtype).endswith("float32")
        np.testing.assert_allclose(np.asarray(key_log_gain), np.log([1, 1, 1, 3, 5]), rtol=1e-7)
        np.testing.assert_allclose(np.asarray(value_gain), [1, 1, 1, 2, 3], rtol=1e-7)


def test_positions_need_no_order() -> None:
    _, value_gain = gains_from_score(SCORE, np.array([4, 0, 2]), 5, alpha_k=0.0, alpha_v=1.0)
    np.testing.assert_array_equal(value_gain, np.array([1.5, 1, 2, 1, 1], np.float32))


@pytest.mark.filterwarnings("error")
def test_a_gain_of_zero_is_minus_infinity() -> None:
    key_log_gain, value_gain = gains_from_score(SCORE, np.arange(3), 3, alpha_k=-1.0, alpha_v=-1.0)
    np.testing.assert_array_equal(key_log_gain, np.array([0.0, np.log(0.5), -np.inf], np.float32))
    np.testing.assert_array_equal(value_gain, np.array([1, 0.5, 0], np.float32))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"alpha_k": -1.5}, ["alpha_k", -1.5]),
        ({"alpha_v": -1.01}, ["alpha_v", -1.01]),
        ({"alpha_v": float("nan")}, ["alpha_v", "nan"]),
        ({"alpha_k": float("inf")}, ["alpha_k", "inf"]),
        ({"sharing_score": np.array([0.0, np.nan, 1.0])}, ["sharing_score", "NaN"]),
        ({"sharing_score": SCORE[None]}, ["sharing_score", (1, 3)]),
        ({"visual": np.array([True, True, False, False])}, ["mask", 2, 3]),
        ({"visual": np.array([True, True, True])}, ["mask", (3,), 4]),
        ({"visual": np.array([0, 1, 1])}, [3]),
        ({"visual": np.array([0, 1, 4])}, [3, 4]),
        ({"visual": np.array([-1, 0, 1])}, [3, 4]),
        ({"visual": np.array([0.0, 1.0, 2.0])}, ["float64"]),
        ({"visual": np.array([0, 1])}, [2, 3]),
    ],
)
def test_bad_gains_are_refused(change: dict[str, Any], named: list[object]) -> None:
    arguments: dict[str, Any] = {
        "sharing_score": SCORE,
        "visual": np.arange(3),
        "length": 4,
        "alpha_k": 1.0,
        "alpha_v": 1.0,
        **change,
    }
    with refused("gains_from_score", *named):
        gains_from_score(**arguments)
