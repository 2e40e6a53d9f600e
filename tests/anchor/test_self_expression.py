"""The textbook solver against the original implementation, and the one-state solver against the textbook."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from golden_scores import SSC_CASES, TINY, load_golden_score, planted_tokens
from refusals import refused
from sklearn.decomposition import PCA

from va_export.anchor import self_expression
from va_export.anchor.projection import project_to_principal_components, scale_to_unit
from va_export.anchor.self_expression import AdmmOptions, penalty_weights, solve_self_expression
from va_export.anchor.textbook import TextbookSolution, textbook_lambdas, textbook_self_expression

ALL_CASES = [*SSC_CASES, TINY]
KINDS = {"numpy": np.asarray, "torch": torch.tensor}


@pytest.fixture(autouse=True, params=["compiled", "arrays"])
def solver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything here holds for both forms of the one-state solver."""
    path = request.getfixturevalue("solver_path") if request.param == "compiled" else None
    monkeypatch.setattr(self_expression, "solver_library", lambda: path)
    return str(request.param)


@pytest.mark.parametrize("name", SSC_CASES)
def test_textbook_equals_the_original(name: str, textbook_solution: Callable[[str], TextbookSolution]) -> None:
    golden, ours = load_golden_score(name), textbook_solution(name)
    assert ours.iterations == golden.iterations
    np.testing.assert_allclose([ours.lambda_e, ours.lambda_z], [golden.lambda_e, golden.lambda_z], rtol=1e-12)
    # golden's C is rounded to float32: half a unit in the last place of an entry below 2 is 6e-8.
    np.testing.assert_allclose(ours.self_expression, golden.self_expression, rtol=0, atol=6e-8)
    # Its row sums are float64 sums of the unrounded C.
    np.testing.assert_allclose(ours.self_expression.sum(axis=1), golden.row_sum, rtol=0, atol=1e-9)


def test_textbook_near_the_original_on_a_models_tokens(
    textbook_solution: Callable[[str], TextbookSolution],
) -> None:
    # The original's λ of these tokens are float32 products (3e-8 off), and the residual dips only just below eps: it
    # stopped one iteration later. Entries of C move by up to 2e-3 an iteration there.
    golden, ours = load_golden_score(TINY), textbook_solution(TINY)
    assert abs(ours.iterations - golden.iterations) <= 1
    np.testing.assert_allclose([ours.lambda_e, ours.lambda_z], [golden.lambda_e, golden.lambda_z], rtol=1e-6)
    np.testing.assert_allclose(ours.self_expression, golden.self_expression, rtol=0, atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ALL_CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 2e-5)])
def test_one_state_solver_equals_the_textbook(
    name: str, dtype: type, tolerance: float, kind: str, textbook_solution: Callable[[str], TextbookSolution]
) -> None:
    reference = textbook_solution(name)
    tokens = KINDS[kind](load_golden_score(name).projected.astype(dtype))
    ours = solve_self_expression(tokens, AdmmOptions())
    assert ours.converged
    assert abs(ours.iterations - reference.iterations) <= (0 if dtype is np.float64 else 1)
    assert ours.matrix.dtype == tokens.dtype
    if ours.iterations == reference.iterations:
        np.testing.assert_allclose(np.asarray(ours.matrix), reference.self_expression, rtol=0, atol=tolerance)
        assert ours.residual == pytest.approx(reference.residual, abs=tolerance)
    else:  # float32 may cross eps one iteration earlier or later
        np.testing.assert_allclose(np.asarray(ours.matrix), reference.self_expression, rtol=0, atol=2e-3)


@pytest.mark.parametrize(("n_per_subspace", "dim"), [(10, 5), (10, 39), (10, 40), (10, 41), (5, 90), (1, 4)])
def test_every_shape_of_the_basis(n_per_subspace: int, dim: int) -> None:
    """D + 1 below, at and above N: the basis is square, or spans a part."""
    tokens, _ = planted_tokens(n_per_subspace, 4, dim, noise=0.05)
    reference = textbook_self_expression(tokens, max_iter=80)
    ours = solve_self_expression(tokens, AdmmOptions(max_iter=80))
    assert ours.iterations == reference.iterations
    np.testing.assert_allclose(ours.matrix, reference.self_expression, rtol=0, atol=1e-10)


def test_unusual_settings_and_an_error_term_at_work() -> None:
    """A small α_e makes E large and dense: the sparse shortcut must not be what makes the solver right."""
    tokens, _ = planted_tokens(12, 3, 20, noise=0.2)
    settings = {"rho": 20.0, "alpha_e": 3.0, "alpha_z": 100.0, "eps": 1e-3, "max_iter": 200}
    reference = textbook_self_expression(tokens, **settings)
    ours = solve_self_expression(tokens, AdmmOptions(**settings))
    assert ours.iterations == reference.iterations
    np.testing.assert_allclose(ours.matrix, reference.self_expression, rtol=0, atol=1e-10)


def test_block_size_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, _ = planted_tokens(9, 4, 12, noise=0.1)
    whole = solve_self_expression(tokens, AdmmOptions(max_iter=60))
    monkeypatch.setattr(self_expression, "_HOST_BLOCK_BYTES", 5 * 36 * 8)  # five rows, and one left over
    blocks = solve_self_expression(tokens, AdmmOptions(max_iter=60))
    np.testing.assert_allclose(blocks.matrix, whole.matrix, rtol=0, atol=1e-12)
    assert (blocks.lambda_e, blocks.lambda_z) == pytest.approx((whole.lambda_e, whole.lambda_z), rel=1e-12)


def test_solution_satisfies_the_constraints() -> None:
    tokens, _ = planted_tokens(15, 4, 30, noise=0.02)
    c = solve_self_expression(tokens, AdmmOptions(eps=1e-7)).matrix
    assert (np.diag(c) == 0).all()
    np.testing.assert_allclose(c.sum(axis=0), 1.0, atol=1e-4)
    np.testing.assert_allclose(c.T @ tokens, tokens, atol=0.3)  # column j writes token j


def test_penalty_weights_by_blocks() -> None:
    tokens = np.random.default_rng(3).standard_normal((700, 6))  # two blocks of rows
    np.testing.assert_allclose(penalty_weights(tokens, 800.0, 700.0), textbook_lambdas(tokens.T, 800.0, 700.0))


@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (20, 20)])
@pytest.mark.parametrize("kind", KINDS)
def test_projection_is_scikit_learns_up_to_sign(shape: tuple[int, int], kind: str) -> None:
    tokens = np.random.default_rng(4).standard_normal(shape) * np.geomspace(1, 0.05, shape[1])
    expected = PCA(7, svd_solver="full").fit_transform(tokens)
    ours = np.asarray(project_to_principal_components(KINDS[kind](tokens), 7))
    signs = np.sign((ours * expected).sum(axis=0))
    np.testing.assert_allclose(ours * signs, expected, atol=1e-10)


@pytest.mark.parametrize("factor", [1.0, 1e-300, 1e308, 5e-324, -3.0])
def test_scaling_is_by_an_exact_power_of_two(factor: float) -> None:
    tokens = np.array([[1.0, -0.75], [0.5, 0.0]]) * factor
    scaled, scale = scale_to_unit(tokens)
    assert 1.0 <= np.abs(scaled).max() < 2.0
    assert np.frexp(scale)[0] == 0.5
    np.testing.assert_array_equal(scaled * scale, tokens)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_overflow_is_an_error_and_not_a_nan() -> None:
    tokens = np.random.default_rng(5).standard_normal((8, 4)).astype(np.float32)
    with refused("subspace_score", "float32"):
        solve_self_expression(tokens, AdmmOptions(rho=1e-300, alpha_e=1e-300, alpha_z=1e-300))
