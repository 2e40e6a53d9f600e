"""Settings that are found and not given: the number of subspaces by eigengap, alpha_k by a share of attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from golden_scores import planted_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused
from sklearn.metrics import adjusted_rand_score

from va_export.anchor import alpha_k_for_target_share, gains_from_score, spectral, subspace_score
from va_export.anchor.gains import alphas_of_prompt
from va_export.anchor.spectral import count_subspaces
from va_export.settings import GainSettings


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("planted", [2, 3, 6, 9])
def test_the_eigengap_finds_what_was_planted(planted: int, kind: Any) -> None:
    tokens, truth = planted_tokens(20, planted, 60, rank=3, noise=0.01)
    found = subspace_score(kind(tokens), "auto", return_details=True)
    assert len(np.unique(np.asarray(found.labels))) == planted
    # Of nine, a few tokens near two subspaces go astray, and the same ones where K is given.
    assert adjusted_rand_score(np.asarray(found.labels), truth) > (0.9 if planted == 9 else 0.999)
    given_k = subspace_score(kind(tokens), planted, return_details=True)
    assert adjusted_rand_score(np.asarray(given_k.labels), np.asarray(found.labels)) == 1.0
    np.testing.assert_array_equal(np.asarray(found.sharing_score), np.asarray(given_k.sharing_score))


def test_the_eigengap_by_lanczos_is_the_dense_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, _ = planted_tokens(60, 5, 40, rank=3, noise=0.01)
    dense = subspace_score(tokens, "auto", return_details=True)
    monkeypatch.setattr(spectral, "_DENSE_TOKENS", 0)
    lanczos = subspace_score(tokens, "auto", return_details=True)
    np.testing.assert_array_equal(lanczos.labels, dense.labels)
    assert len(np.unique(dense.labels)) == 5


@pytest.mark.parametrize(
    ("spectrum", "expected"),
    [
        ([1.0, 1.0, 1.0, 0.4, 0.3], 3),
        ([1.0, 0.2, 0.1, 0.05], 2),  # the largest gap is after one: one subspace says nothing
        ([1.0, 0.9, 0.5, 0.1, 0.0], 2),  # equal gaps: the smaller
        ([1.0, 0.9, 0.8, 0.1], 3),
        ([1.0] * 6, 5),  # no gap: more groups than were looked at
        ([1.0] * 5 + [1.0 - 1e-12], 5),  # a gap of rounding is none
        ([1.0, 0.3, -1.0], 2),
        ([1.0, -1.0], 1),
    ],
)
def test_which_gap_counts(spectrum: list[float], expected: int) -> None:
    assert count_subspaces(np.array(spectrum)) == expected


SCORE = np.array([0.0, 0.25, 0.5, 1.0])


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    plain=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=6),
    rise=st.floats(0.05, 0.9),
    seed=st.integers(0, 1000),
)
def test_the_share_is_the_target(plain: list[float], rise: float, seed: int) -> None:
    """Against softmax rows written out: gains are applied to logits, rows normalised, visual keys summed."""
    rng = np.random.default_rng(seed)
    rows = np.array(plain)
    target = rows.mean() + rise * (1 - rows.mean())
    alpha = alpha_k_for_target_share(SCORE, rows, float(target))
    assert alpha > 0
    # Within the visual keys attention is even, as the function takes it; within the text it is as it may be.
    text = rng.random((len(rows), 3)) + 0.1
    text *= ((1 - rows) / text.sum(axis=1))[:, None]
    plain_logits = np.log(np.concatenate([np.repeat(rows[:, None] / 4, 4, axis=1), text], axis=1))
    key_log_gain, _ = gains_from_score(SCORE, np.arange(4), 7, alpha_k=alpha, alpha_v=0.0)
    weights = np.exp(plain_logits + key_log_gain)
    weights /= weights.sum(axis=1, keepdims=True)
    assert weights[:, :4].sum(axis=1).mean() == pytest.approx(target, abs=1e-6)  # gains are float32


def test_one_row_has_a_closed_form() -> None:
    """p m / (p m + 1 − p) = t for m = t (1 − p) / (p (1 − t)): from 0.2 to 0.5, m = 4."""
    assert alpha_k_for_target_share(SCORE, 0.2, 0.5) == pytest.approx((4 - 1) / SCORE.mean(), rel=1e-12)
    assert alpha_k_for_target_share(torch.tensor(SCORE), 0.2, 0.5) == alpha_k_for_target_share(SCORE, 0.2, 0.5)


def test_a_higher_target_takes_a_higher_gain_and_higher_scores_a_lower_one() -> None:
    shares = np.linspace(0.31, 0.99, 30)
    alphas = [alpha_k_for_target_share(SCORE, np.array([0.1, 0.5]), share) for share in shares]
    assert (np.diff(alphas) > 0).all()
    assert alpha_k_for_target_share(SCORE, 0.3, 0.6) > alpha_k_for_target_share(np.sqrt(SCORE), 0.3, 0.6)


def test_nothing_is_weakened_and_a_still_video_needs_nothing() -> None:
    assert alpha_k_for_target_share(SCORE, 0.6, 0.5) == 0.0
    assert alpha_k_for_target_share(SCORE, 0.5, 0.5) == 0.0
    assert alpha_k_for_target_share(np.zeros(4), 0.2, 0.5) == 0.0
    assert alpha_k_for_target_share(SCORE[:0], 0.2, 0.5) == 0.0


@pytest.mark.parametrize(
    ("score", "plain", "target", "named"),
    [
        (SCORE, 0.2, 1.0, [1.0]),
        (SCORE, 0.2, 0.0, [0.0]),
        (SCORE, 0.2, float("nan"), ["nan"]),
        (SCORE, -0.1, 0.5, ["plain"]),
        (SCORE, np.array([0.2, np.nan]), 0.5, ["plain"]),
        (SCORE, np.zeros(0), 0.5, ["plain"]),
        (SCORE, 0.0, 0.5, ["alpha_k", 0, 0.5]),
        (SCORE * 1e-6, 0.2, 0.5, ["alpha_k", 0.5]),
        (SCORE * 9, 0.2, 0.5, [(SCORE * 9).mean()]),
        (SCORE * np.nan, 0.2, 0.5, ["nan"]),
    ],
)
def test_targets_that_cannot_be_are_refused(score: Any, plain: Any, target: float, named: list[object]) -> None:
    with refused("alpha_k_for_target_share", *named):
        alpha_k_for_target_share(score, plain, target)


def test_the_alphas_of_a_prompt() -> None:
    plain = GainSettings(9.5, 2.5)
    assert alphas_of_prompt(plain, SCORE, 20) == (9.5, 2.5)
    by_count = GainSettings(9.5, 2.5, target_visual_share=0.5)  # 4 of 20 tokens are visual
    assert alphas_of_prompt(by_count, SCORE, 20) == (alpha_k_for_target_share(SCORE, 0.2, 0.5), 2.5)
    measured = GainSettings(9.5, 2.5, target_visual_share=0.5, plain_visual_share=0.3)
    assert alphas_of_prompt(measured, SCORE, 20) == (alpha_k_for_target_share(SCORE, 0.3, 0.5), 2.5)
    assert alphas_of_prompt(measured, SCORE[:0], 20) == (9.5, 2.5)
