"""`subspace_score` against the original implementation, its properties, and what it does with bad or odd tokens."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from golden_scores import SSC_CASES, TINY, load_golden_score, planted_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from refusals import refused
from sklearn.cluster import spectral_clustering
from sklearn.metrics import adjusted_rand_score

from va_export.anchor import SubspaceScore, sharing, spectral, subspace_score
from va_export.errors import VaExportError

KINDS = {"numpy": np.asarray, "torch": torch.tensor}


@pytest.mark.parametrize("name", [*SSC_CASES, TINY])
@pytest.mark.parametrize(
    ("kind", "dtype", "tolerance"), [("numpy", "float64", 1e-9), ("numpy", "float32", 1e-4), ("torch", "float32", 1e-4)]
)
def test_score_equals_the_original(name: str, kind: str, dtype: Any, tolerance: float) -> None:
    golden = load_golden_score(name)
    tokens = KINDS[kind](golden.tokens)
    ours = subspace_score(tokens, golden.n_subspaces, golden.pca_rank, dtype=dtype, return_details=True)
    if name == TINY:  # the original stopped one iteration later there: see test_self_expression.py
        tolerance = 2e-3
    assert type(ours.sharing_score) is type(tokens)
    assert str(ours.sharing_score.dtype).endswith(dtype)
    np.testing.assert_allclose(np.asarray(ours.sharing_score), golden.sharing_score, rtol=0, atol=tolerance)
    assert adjusted_rand_score(np.asarray(ours.labels), golden.labels) == 1.0
    np.testing.assert_allclose([ours.lambda_e, ours.lambda_z], [golden.lambda_e, golden.lambda_z], rtol=1e-6)
    assert ours.converged
    assert ours.residual < 2e-4
    assert abs(ours.iterations - golden.iterations) <= 1


def test_sharing_score_equals_the_original_from_its_own_self_expression() -> None:
    for name in SSC_CASES:
        golden = load_golden_score(name)
        ours = sharing.sharing_score(golden.row_sum, golden.labels)
        np.testing.assert_allclose(ours, golden.sharing_score, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [*SSC_CASES, TINY])
def test_labels_are_scikit_learns(name: str) -> None:
    """Number for number: Lanczos on the sparse affinity, or a dense solver, against an inverted dense Laplacian."""
    golden = load_golden_score(name)
    size = np.abs(golden.self_expression.astype(np.float64))
    for k in (2, golden.n_subspaces):
        expected = spectral_clustering(size + size.T, n_clusters=k, assign_labels="discretize", random_state=0)
        for dense_tokens in (0, 1000):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(spectral, "_DENSE_TOKENS", dense_tokens)
                ours = spectral.cluster_subspaces(golden.self_expression, k)
            np.testing.assert_array_equal(ours, expected)


def test_planted_subspaces_are_found() -> None:
    tokens, truth = planted_tokens(20, 6, 40, rank=4, noise=0.01)
    details = subspace_score(tokens.astype(np.float32), n_subspaces=6, return_details=True)
    assert adjusted_rand_score(details.labels, truth) == 1.0


def test_a_recurring_token_scores_above_one_that_never_recurs() -> None:
    """What the score is for: 15 noisy views of one line of tokens against 15 directions of their own."""
    rng = np.random.default_rng(1)
    recurring = rng.standard_normal(40)[None] * rng.uniform(0.8, 1.2, (15, 1)) + 0.02 * rng.standard_normal((15, 40))
    tokens = np.concatenate([recurring, 0.5 * rng.standard_normal((15, 40))])
    score = subspace_score(tokens, n_subspaces=4)
    assert np.median(score[:15]) > np.median(score[15:])


def test_details_and_score_agree() -> None:
    tokens, _ = planted_tokens(8, 3, 12, noise=0.05)
    details = subspace_score(tokens, n_subspaces=3, return_details=True)
    assert isinstance(details, SubspaceScore)
    np.testing.assert_array_equal(subspace_score(tokens, n_subspaces=3), details.sharing_score)
    assert details.self_expression.shape == (24, 24)
    with pytest.raises(AttributeError):
        details.iterations = 0  # type: ignore[misc]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_tokens_are_scored_in_float32(dtype: torch.dtype) -> None:
    tokens, _ = planted_tokens(8, 3, 12, noise=0.05)
    low = torch.tensor(tokens).to(dtype)
    score = subspace_score(low, n_subspaces=3)
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, subspace_score(low.float(), n_subspaces=3), rtol=0, atol=0)


def test_a_callers_autocast_and_autograd_do_not_reach_the_solver() -> None:
    tokens = torch.tensor(planted_tokens(8, 3, 12, noise=0.05)[0], dtype=torch.float32)
    expected = subspace_score(tokens, n_subspaces=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        score = subspace_score(tokens.clone().requires_grad_(), n_subspaces=3)
    assert not score.requires_grad
    torch.testing.assert_close(score, expected, rtol=0, atol=0)


def test_tokens_are_not_modified_and_may_be_strided() -> None:
    tokens, _ = planted_tokens(8, 3, 12, noise=0.05)
    wide = np.asfortranarray(np.repeat(tokens, 2, axis=1))[:, ::2]
    before = wide.copy()
    np.testing.assert_array_equal(subspace_score(wide, 3), subspace_score(tokens, 3))
    np.testing.assert_array_equal(wide, before)


def test_numpy_scoring_needs_no_pytorch() -> None:
    program = (
        "import sys, numpy as np; from va_export.anchor import subspace_score, gains_from_score\n"
        "score = subspace_score(np.random.default_rng(0).standard_normal((12, 4)), n_subspaces=2)\n"
        "gains_from_score(score, np.arange(12), 20, alpha_k=1.0, alpha_v=1.0)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'imported'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_package_exports_are_lazy_and_complete() -> None:
    import va_export.anchor as package

    assert callable(package.subspace_score)
    assert all(getattr(package, name) is not None for name in package.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing


# What the mathematics promises


@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_permuting_tokens_permutes_scores(seed: int) -> None:
    """Where the subspaces are clear. Yu and Shi's discretisation starts from one row, so doubtful tokens may move."""
    tokens, truth = planted_tokens(16, 2, 40, rank=5, seed=seed)
    order = np.random.default_rng(seed).permutation(len(tokens))
    plain = subspace_score(tokens, 2, dtype="float64", return_details=True)
    shuffled = subspace_score(tokens[order], 2, dtype="float64", return_details=True)
    np.testing.assert_allclose(shuffled.self_expression, plain.self_expression[np.ix_(order, order)], atol=1e-7)
    assert adjusted_rand_score(plain.labels, truth) == adjusted_rand_score(shuffled.labels, truth[order]) == 1.0
    np.testing.assert_allclose(shuffled.sharing_score, plain.sharing_score[order], atol=1e-6)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), factor=st.floats(1e-6, 1e6) | st.floats(-1e6, -1e-6))
def test_the_tokens_scale_does_not_matter(seed: int, factor: float) -> None:
    """λ_e goes with 1/s, λ_z with 1/s², E with s: every iterate C stays. The sign goes with Y and E alike."""
    tokens, _ = planted_tokens(8, 3, 6, noise=0.1, seed=seed)
    plain = subspace_score(tokens, 3, dtype="float64", return_details=True)
    scaled = subspace_score(tokens * factor, 3, dtype="float64", return_details=True)
    np.testing.assert_allclose(scaled.self_expression, plain.self_expression, atol=1e-7)
    assert scaled.lambda_e * abs(factor) == pytest.approx(plain.lambda_e, rel=1e-9)
    assert scaled.lambda_z * factor**2 == pytest.approx(plain.lambda_z, rel=1e-9)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), exponent=st.integers(-60, 60))
def test_scaling_by_a_power_of_two_changes_no_bit(seed: int, exponent: int) -> None:
    tokens = planted_tokens(6, 3, 6, noise=0.1, seed=seed)[0].astype(np.float32)
    np.testing.assert_array_equal(subspace_score(tokens * np.float32(2.0**exponent), 3), subspace_score(tokens, 3))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_order_and_sign_of_features_do_not_matter(seed: int) -> None:
    """‖E‖₁ is taken feature by feature: signed permutations keep it. (Rotations do not, unless PCA comes first.)"""
    rng = np.random.default_rng(seed)
    tokens, _ = planted_tokens(8, 3, 10, noise=0.1, seed=seed)
    flipped = tokens[:, rng.permutation(10)] * rng.choice([-1.0, 1.0], 10)
    rotated = tokens @ np.linalg.qr(rng.standard_normal((10, 10)))[0]
    for other, rank in ((flipped, 0), (rotated, 5)):
        plain = subspace_score(tokens, 3, rank, dtype="float64", return_details=True)
        ours = subspace_score(other, 3, rank, dtype="float64", return_details=True)
        np.testing.assert_allclose(ours.self_expression, plain.self_expression, atol=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    tokens=hnp.arrays(np.float32, st.tuples(st.integers(2, 14), st.integers(1, 6)), elements=st.integers(-2, 2)),
    n_subspaces=st.integers(1, 4),
    rank=st.integers(0, 3),
)
def test_any_tokens_score_between_0_and_1_or_are_refused(tokens: Any, n_subspaces: int, rank: int) -> None:
    """Small integers: zeros, duplicates, orthogonal and all-equal tokens are common."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="subspace_score stopped")
        try:
            score = subspace_score(tokens, n_subspaces, rank, max_iter=200)
        except VaExportError as refusal:
            assert any(reason in refusal.what for reason in ("cannot form", "pca_rank", "orthogonal"))
            return
    assert score.shape == (len(tokens),)
    assert np.isfinite(score).all()
    assert (score >= 0).all()
    assert (score <= 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_scoring_is_deterministic(kind: str) -> None:
    tokens = KINDS[kind](planted_tokens(10, 4, 20, noise=0.2)[0])
    np.testing.assert_array_equal(np.asarray(subspace_score(tokens, 4)), np.asarray(subspace_score(tokens, 4)))


# Odd tokens


@pytest.mark.parametrize("fill", [0.0, 3.5])
@pytest.mark.parametrize("rank", [0, 2])
def test_equal_tokens_score_zero(fill: float, rank: int) -> None:
    details = subspace_score(np.full((12, 5), fill), 3, rank, return_details=True)
    np.testing.assert_array_equal(details.sharing_score, np.zeros(12, np.float32))
    assert details.iterations == 0
    assert math.isnan(details.lambda_e)


@pytest.mark.filterwarnings("error")
def test_a_frozen_video_repeats_every_token() -> None:
    """Each token is expressed by its own copies: more groups than subspaces, and still a defined score."""
    frame = np.random.default_rng(2).standard_normal((16, 24))
    details = subspace_score(np.tile(frame, (4, 1)), 5, return_details=True)
    c = details.self_expression
    same_patch = np.equal.outer(np.arange(64) % 16, np.arange(64) % 16)
    assert np.abs(c[~same_patch]).max() < 1e-3
    np.testing.assert_allclose(c[same_patch].reshape(64, 4).sum(axis=1), 1.0, atol=2e-3)
    assert np.isfinite(details.sharing_score).all()
    assert set(details.labels) <= set(range(5))


@pytest.mark.parametrize(("n", "k"), [(2, 1), (2, 2), (3, 2), (5, 5), (6, 1)])
def test_the_smallest_videos(n: int, k: int) -> None:
    score = subspace_score(np.random.default_rng(6).standard_normal((n, 7)), n_subspaces=k)
    assert score.shape == (n,)
    assert np.isfinite(score).all()
    assert score.min() == 0.0


def test_subnormal_and_huge_tokens() -> None:
    tokens, _ = planted_tokens(8, 3, 6, noise=0.1)
    expected = subspace_score(tokens, 3)
    np.testing.assert_allclose(subspace_score(tokens * 1e300, 3), expected, atol=1e-4)
    np.testing.assert_allclose(subspace_score(tokens * 1e-300, 3), expected, atol=1e-4)


def test_stopping_early_warns_with_the_residual() -> None:
    tokens, _ = planted_tokens(8, 3, 12, noise=0.05)
    with pytest.warns(RuntimeWarning, match=r"stopped after 3 iterations with residual [0-9.]+"):
        details = subspace_score(tokens, 3, max_iter=3, return_details=True)
    assert not details.converged
    assert details.iterations == 3
    assert details.residual >= 2e-4
    assert np.isfinite(details.sharing_score).all()


GOOD = np.random.default_rng(7).standard_normal((10, 4))


@pytest.mark.parametrize(
    ("tokens", "options", "named"),
    [
        (GOOD[0], {}, [(4,)]),
        (GOOD[None], {}, [(1, 10, 4)]),
        (GOOD[:, :0], {}, [(10, 0)]),
        (GOOD[:0], {}, [(0, 4)]),
        (GOOD[:1], {"n_subspaces": 1}, [1]),
        (GOOD, {"n_subspaces": 11}, [10, 11]),
        (np.where(np.eye(10, 4) > 0, np.nan, GOOD), {}, ["NaN"]),
        (np.where(np.eye(10, 4) > 0, np.inf, GOOD), {}, ["infinity"]),
        (np.where(np.arange(10)[:, None] == 6, 0.0, GOOD), {}, ["token 6"]),
        (np.eye(8), {}, ["token 0"]),
        (GOOD + 1j, {}, ["complex128"]),
        (GOOD > 0, {}, ["bool"]),
        (GOOD.tolist(), {}, ["list"]),
        (GOOD, {"n_subspaces": 0}, ["n_subspaces", "0"]),
        (GOOD, {"n_subspaces": 2.5}, ["n_subspaces", "2.5"]),
        (GOOD, {"pca_rank": -1}, ["pca_rank", "-1"]),
        (GOOD, {"pca_rank": 5}, ["pca_rank", "5"]),
        (GOOD, {"rho": 0.0}, ["rho", "0"]),
        (GOOD, {"rho": math.nan}, ["rho", "nan"]),
        (GOOD, {"alpha_e": -1.0}, ["alpha_e", "-1"]),
        (GOOD, {"alpha_z": math.inf}, ["alpha_z", "inf"]),
        (GOOD, {"eps": 0.0}, ["eps", "0"]),
        (GOOD, {"eps": math.inf}, ["eps", "inf"]),
        (GOOD, {"max_iter": 0}, ["max_iter", "0"]),
        (GOOD, {"dtype": "float16"}, ["float16"]),
    ],
)
def test_bad_input_is_refused_by_name(tokens: Any, options: dict[str, Any], named: list[object]) -> None:
    with refused("subspace_score", *named):
        subspace_score(tokens, **{"n_subspaces": 3, **options})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_score_on_a_gpu_equals_the_original() -> None:
    golden = load_golden_score(SSC_CASES[0])
    tokens = torch.tensor(golden.tokens, device="cuda")
    details = subspace_score(tokens, golden.n_subspaces, golden.pca_rank, return_details=True)
    assert details.sharing_score.device == details.self_expression.device == tokens.device
    np.testing.assert_allclose(details.sharing_score.cpu(), golden.sharing_score, rtol=0, atol=2e-3)
