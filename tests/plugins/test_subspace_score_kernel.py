"""The SubspaceScore kernels, compiled for the CPU, against the reference in float64 and the paper's own numbers."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scorable_tokens
from attention_case import as_float64, encode
from msgspec.structs import asdict, replace
from score_case import Array, Scores, score_on_host, score_params
from sklearn.metrics import adjusted_rand_score

from va_export.anchor import SubspaceScore, scorable, subspace_score
from va_export.errors import VaExportError
from va_export.native.subspace_score_params import (
    EQUAL_TOKENS,
    LONE_TOKEN,
    NO_RESULT,
    NOT_FINITE,
    OVERFLOW,
    SOLVED,
    SubspaceScoreParams,
)
from va_export.settings import ScoreSettings

sys.path.insert(0, str(Path(__file__).parents[1] / "anchor"))
from golden_scores import load_golden_score, planted_tokens

# float32 where the reference takes float64: 20 roundings of 6e-8 on numbers up to 10, which the min-max of the score
# divides by its range; beside it the iteration may stop one step apart, which moves C by less than eps = 2e-4.
TOLERANCE = 1e-4
INVALID_VALUE, NOT_SUPPORTED = 1, 801


@pytest.fixture(autouse=True)
def on_tensor_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """The solver's products here; test_score_products.py has both."""
    monkeypatch.setenv("VA_EXPORT_SCORE_PRODUCTS", "tensor_core")


def reference(tokens: Array, settings: ScoreSettings) -> SubspaceScore:
    details: SubspaceScore = subspace_score(tokens, **asdict(settings), dtype="float64", return_details=True)
    return details


def assert_scores_equal(ours: Scores, expected: SubspaceScore, tolerance: float = TOLERANCE) -> None:
    assert ours.status == SOLVED
    assert abs(ours.iterations - expected.iterations) <= 1
    np.testing.assert_allclose([ours.lambda_e, ours.lambda_z], [expected.lambda_e, expected.lambda_z], rtol=3e-6)
    np.testing.assert_allclose(ours.self_expression, expected.self_expression, rtol=0, atol=tolerance)
    assert adjusted_rand_score(ours.labels, expected.labels) == 1.0
    np.testing.assert_allclose(ours.sharing_score, expected.sharing_score, rtol=0, atol=tolerance)


def drifting_tokens(n: int, dim: int, groups: int, seed: int = 0) -> Array:
    return planted_tokens(-(-n // groups), groups, dim, noise=0.05, seed=seed)[0][:n]


@pytest.mark.parametrize(
    ("n", "dim", "settings"),
    [
        (24, 12, ScoreSettings(n_subspaces=3)),  # thin, one tile
        (48, 40, ScoreSettings(n_subspaces=3)),  # Gram form
        (130, 20, ScoreSettings(n_subspaces=4, eps=2e-2)),  # several tiles and strips
        (150, 70, ScoreSettings(n_subspaces=4, max_iter=20)),  # two chunks of features
        (70, 66, ScoreSettings(n_subspaces=3, eps=2e-3)),  # Gram form, several tiles of either
        (40, 30, ScoreSettings(n_subspaces=3, pca_rank=5, eps=2e-3)),  # PCA of features
        (40, 90, ScoreSettings(n_subspaces=3, pca_rank=30, eps=2e-3)),  # PCA of tokens, then Gram form
        (30, 30, ScoreSettings(n_subspaces=3, pca_rank=30, eps=2e-3)),  # a component without any variance
        (24, 12, ScoreSettings(n_subspaces=3, rho=10.0, alpha_e=40.0, alpha_z=20.0)),
        (24, 12, ScoreSettings(n_subspaces=3, alpha_e=20.0, alpha_z=800.0, max_iter=100)),  # many errors E
        (48, 40, ScoreSettings(n_subspaces=3, alpha_e=20.0, alpha_z=800.0, max_iter=100)),
        (24, 12, ScoreSettings(n_subspaces=1)),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:subspace_score stopped")
def test_equals_the_reference(score_library: ctypes.CDLL, n: int, dim: int, settings: ScoreSettings) -> None:
    tokens = drifting_tokens(n, dim, settings.n_subspaces).astype(np.float32)
    ours = score_on_host(score_library, tokens, settings)
    expected = reference(tokens, settings)
    assert_scores_equal(ours, expected)
    assert (ours.residual < settings.eps) == expected.converged
    np.testing.assert_array_equal(ours.labels, expected.labels)  # the start is scikit-learn's, so its numbering too


@pytest.mark.parametrize(("name", "eps"), [("n256_d96_r0", 5e-3), ("n320_d480_r48", 2e-2)])
def test_golden_tokens(score_library: ctypes.CDLL, name: str, eps: float) -> None:
    """The paper's own tokens, stopped at a larger eps for speed; scripts/gpu_score.py runs them to the end."""
    golden = load_golden_score(name)
    settings = ScoreSettings(n_subspaces=golden.n_subspaces, pca_rank=golden.pca_rank, eps=eps)
    ours = score_on_host(score_library, golden.tokens, settings)
    assert_scores_equal(ours, reference(golden.tokens, settings))
    np.testing.assert_allclose([ours.lambda_e, ours.lambda_z], [golden.lambda_e, golden.lambda_z], rtol=3e-6)
    assert adjusted_rand_score(ours.labels, golden.labels) == 1.0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_tokens(score_library: ctypes.CDLL, dtype: str) -> None:
    tokens = as_float64(encode(drifting_tokens(24, 12, 3), dtype), dtype)
    settings = ScoreSettings(n_subspaces=3)
    assert_scores_equal(score_on_host(score_library, tokens, settings, dtype=dtype), reference(tokens, settings))


@pytest.mark.parametrize("settings", [ScoreSettings(3, max_iter=6), ScoreSettings(3, pca_rank=9, max_iter=6)], ids=str)
def test_neither_grid_nor_order_of_threads_changes_a_bit(score_library: ctypes.CDLL, settings: ScoreSettings) -> None:
    tokens = drifting_tokens(70, 24, 3)
    expected = score_on_host(score_library, tokens, settings, blocks=1)
    for blocks, schedule in ((2, 1), (3, 2), (5, 3)):
        ours = score_on_host(score_library, tokens, settings, blocks=blocks, schedule=schedule)
        for name in ("sharing_score", "labels", "self_expression"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(expected, name))
        assert (ours.iterations, ours.residual) == (expected.iterations, expected.residual)


@pytest.mark.parametrize("exponent", [-100, 60])
def test_a_power_of_two_changes_no_bit(score_library: ctypes.CDLL, exponent: int) -> None:
    tokens, settings = drifting_tokens(24, 12, 3).astype(np.float32), ScoreSettings(n_subspaces=3, max_iter=20)
    plain = score_on_host(score_library, tokens, settings)
    scaled = score_on_host(score_library, tokens * np.float32(2.0**exponent), settings)
    np.testing.assert_array_equal(scaled.sharing_score, plain.sharing_score)
    assert scaled.lambda_z == pytest.approx(plain.lambda_z * 4.0**-exponent, rel=1e-12)


GOOD = np.random.default_rng(7).standard_normal((10, 4)).astype(np.float32)


@pytest.mark.parametrize(
    ("tokens", "settings", "status"),
    [
        (np.zeros((12, 5)), ScoreSettings(3), EQUAL_TOKENS),
        (np.full((12, 5), 3.5), ScoreSettings(3, pca_rank=2), EQUAL_TOKENS),
        (np.where(np.eye(10, 4) > 0, np.nan, GOOD), ScoreSettings(3), NOT_FINITE),
        (np.where(np.eye(10, 4) > 0, np.inf, GOOD), ScoreSettings(3, pca_rank=2), NOT_FINITE),
        (np.full((10, 4), -np.inf), ScoreSettings(3), NOT_FINITE),
        (np.where(np.arange(10)[:, None] == 6, 0.0, GOOD), ScoreSettings(3), LONE_TOKEN),
        (np.eye(8), ScoreSettings(3), LONE_TOKEN),
        (np.tile(GOOD, 4), ScoreSettings(3, rho=1e-20, alpha_z=1e20, max_iter=20), OVERFLOW),  # singular in float64
        (GOOD, ScoreSettings(3, rho=1e-2, max_iter=30), NO_RESULT),  # C is still 0
    ],
)
def test_what_cannot_be_scored_scores_zero(
    score_library: ctypes.CDLL, tokens: Array, settings: ScoreSettings, status: int
) -> None:
    ours = score_on_host(score_library, tokens, settings)
    assert ours.status == status
    assert not ours.sharing_score.any()
    assert set(ours.labels) == {0 if status == EQUAL_TOKENS else scorable.NO_SCORE}
    assert not ours.self_expression.any()


def test_the_kernels_have_the_references_bounds() -> None:
    header = (Path(__file__).parents[2] / "plugins" / "subspace_score" / "scorable.h").read_text()
    numbers = {name: float(value) for name, value in re.findall(r"constexpr \w+ (k\w+) = (-?[\d.e-]+)f?;", header)}
    assert numbers.pop("kRoundoff") == pytest.approx(scorable.ROUNDOFF["float32"], rel=1e-7)
    assert numbers == {
        "kEqualRoundings": scorable.EQUAL_ROUNDINGS,
        "kRangeRoundings": scorable.RANGE_ROUNDINGS,
        "kAngleRoundings": scorable.ANGLE_ROUNDINGS,
        "kLargestResidual": scorable.LARGEST_RESIDUAL,
        "kNoScore": scorable.NO_SCORE,
    }


@pytest.mark.parametrize("name", scorable_tokens.TOKENS)
def test_the_kernels_score_and_refuse_as_the_reference(score_library: ctypes.CDLL, name: str) -> None:
    tokens, verdict = scorable_tokens.TOKENS[name]
    ours = score_on_host(score_library, tokens, ScoreSettings(3))
    statuses = {
        scorable_tokens.SCORED: SOLVED,
        scorable_tokens.EQUAL: EQUAL_TOKENS,
        scorable_tokens.REFUSED: LONE_TOKEN,
    }
    assert ours.status == statuses[verdict]
    if verdict == scorable_tokens.SCORED:
        np.testing.assert_allclose(ours.self_expression, reference(tokens, ScoreSettings(3)).self_expression, atol=1e-3)


@pytest.mark.parametrize(("n", "k"), [(2, 1), (2, 2), (3, 2), (5, 5), (6, 1)])
def test_the_smallest_videos(score_library: ctypes.CDLL, n: int, k: int) -> None:
    tokens = np.random.default_rng(6).standard_normal((n, 7))
    ours = score_on_host(score_library, tokens, ScoreSettings(k, max_iter=300))
    assert ours.status == SOLVED
    assert np.isfinite(ours.sharing_score).all()
    assert ours.sharing_score.min() == 0.0
    assert set(ours.labels) <= set(range(k))


def test_a_frozen_video(score_library: ctypes.CDLL) -> None:
    """More groups than subspaces: the eigenvalue 1 repeats, so the labels are arbitrary, and still defined."""
    frame = np.random.default_rng(2).standard_normal((8, 24))
    ours = score_on_host(score_library, np.tile(frame, (4, 1)), ScoreSettings(3, eps=1e-3))
    expected = reference(np.tile(frame, (4, 1)).astype(np.float32), ScoreSettings(3, eps=1e-3))
    np.testing.assert_allclose(ours.self_expression, expected.self_expression, rtol=0, atol=TOLERANCE)
    assert ours.status == SOLVED
    assert ((ours.sharing_score >= 0) & (ours.sharing_score <= 1)).all()


@pytest.mark.parametrize("seed", range(12))
def test_any_small_tokens_score_between_0_and_1_or_are_refused_as_by_the_reference(
    score_library: ctypes.CDLL, seed: int
) -> None:
    """Small integers: zeros, duplicates, orthogonal and all-equal tokens are common."""
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(4, 14)), int(rng.integers(1, 6)))
    tokens = rng.integers(-2, 3, shape).astype(np.float32)
    settings = ScoreSettings(int(rng.integers(1, 4)), int(rng.integers(0, min(shape))), max_iter=30)
    ours = score_on_host(score_library, tokens, settings)
    assert ((ours.sharing_score >= 0) & (ours.sharing_score <= 1)).all()
    try:
        with pytest.warns(RuntimeWarning) if ours.residual >= settings.eps else np.errstate():
            expected = reference(tokens, settings)
    except VaExportError as refusal:
        assert "orthogonal" in refusal.what
        assert ours.status == LONE_TOKEN
        return
    if ours.status == EQUAL_TOKENS:
        assert expected.iterations == 0
        return
    np.testing.assert_allclose(ours.self_expression, expected.self_expression, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        {"token_count": 1},
        {"token_count": 2},  # fewer than subspaces
        {"token_count": 65537},
        {"dim": 0},
        {"dim": 32769},
        {"dtype": 3},
        {"dtype": -1},
        {"n_subspaces": 0},
        {"n_subspaces": 129},
        {"pca_rank": -1},
        {"pca_rank": 5},
        {"max_iter": 0},
        {"rho": 0.0},
        {"rho": float("nan")},
        {"alpha_e": 1e30},
        {"alpha_z": -1.0},
        {"eps": 0.0},
        {"eps": float("inf")},
        {"tokens": None},
        {"sharing_score": None},
        {"labels": None},
        {"workspace": None},
        {"workspace": 1 << 20 | 128},
        {"workspace_bytes": 1024},
        {"struct_bytes": 8},
    ],
    ids=str,
)
def test_refusals(score_library: ctypes.CDLL, change: dict[str, Any]) -> None:
    params = valid_params(score_library)
    for name, value in change.items():
        setattr(params, name, value)
    before = score_library.simt_launches()
    assert score_library.va_subspace_score_launch(ctypes.byref(params), None) == INVALID_VALUE
    assert score_library.simt_launches() == before


def test_a_device_without_cooperative_launch_is_refused(score_library: ctypes.CDLL) -> None:
    score_library.simt_set_grid(2, 0)
    memory = np.zeros(1 << 22, np.uint8)
    params = valid_params(score_library)
    params.workspace = memory.ctypes.data + -memory.ctypes.data % 256
    assert score_library.va_subspace_score_launch(ctypes.byref(params), None) == NOT_SUPPORTED


def valid_params(library: ctypes.CDLL) -> SubspaceScoreParams:
    """Good sizes and settings, with addresses that nobody reads."""
    params = score_params(GOOD, ScoreSettings(3))
    for name in ("tokens", "sharing_score", "labels", "workspace"):
        setattr(params, name, 1 << 20)
    params.workspace_bytes = library.va_subspace_score_workspace_bytes(ctypes.byref(params))
    return params


@pytest.mark.parametrize("settings", [ScoreSettings(24), ScoreSettings(24, pca_rank=64)], ids=str)
@pytest.mark.parametrize("dim", [1024, 4096])
def test_workspace_serves_fewer_tokens(score_library: ctypes.CDLL, settings: ScoreSettings, dim: int) -> None:
    sizes = []
    for n in [*range(64, 400, 37), 1000, 2047, 2048, 2049, 4096, 8191, 8192, 16384]:
        params = score_params(np.empty((n, dim), np.uint8), settings)
        sizes.append(score_library.va_subspace_score_workspace_bytes(ctypes.byref(params)))
    assert sizes == sorted(sizes)
    assert 0 < sizes[-1] < 16e9  # 16384 tokens on a GPU of 16 GB


def test_settings_are_the_structs(score_library: ctypes.CDLL) -> None:
    """Another eps stops elsewhere, another max_iter earlier: the fields arrive where they belong."""
    tokens, settings = drifting_tokens(24, 12, 3), ScoreSettings(3)
    assert score_on_host(score_library, tokens, replace(settings, max_iter=7)).iterations == 7
    loose = score_on_host(score_library, tokens, replace(settings, eps=0.05))
    assert loose.iterations == reference(tokens.astype(np.float32), replace(settings, eps=0.05)).iterations
