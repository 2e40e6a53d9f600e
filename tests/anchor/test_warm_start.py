"""Warm starts: the same run in two parts, and clips that grow by frames. Iterations are counted, nothing is timed."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused

from va_export.anchor import SubspaceScore, self_expression, subspace_score
from va_export.anchor.projection import project_to_principal_components, scale_to_unit
from va_export.anchor.self_expression import AdmmOptions, solve_self_expression
from va_export.native.solver import solver_library

PATCHES, K = 16, 6
Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True, params=["compiled", "arrays"])
def solver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything here holds for both forms of the solver."""
    path = request.getfixturevalue("solver_path") if request.param == "compiled" else None
    monkeypatch.setattr(self_expression, "solver_library", lambda: path)
    return str(request.param)


def clip(frames: int, noise: float, seed: int = 0, dim: int = 64) -> Array:
    """[PATCHES * frames, dim] float64: patches of six kinds, each kind on a plane of its own, moving a little from
    frame to frame. A longer clip begins with a shorter one."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, K, PATCHES)
    planes, centres = rng.standard_normal((K, 4, dim)) / 2, rng.standard_normal((K, dim))
    place = rng.standard_normal((PATCHES, 4))
    tokens = []
    for _ in range(frames):
        place = place + 0.1 * rng.standard_normal(place.shape)
        frame = np.einsum("pr,prd->pd", place, planes[kind]) + centres[kind]
        tokens.append(frame + noise * rng.standard_normal(frame.shape))
    return np.concatenate(tokens)


def scored(tokens: Any, rank: int = 0, dtype: Any = "float64", **options: Any) -> SubspaceScore:
    return subspace_score(tokens, K, rank, dtype=dtype, return_details=True, keep_state=True, **options)


def optimum(tokens: Array, rank: int) -> Array:
    """C [N, N] of the converged problem: no ρ is in it, and a smaller one gets there sooner."""
    scaled, _ = scale_to_unit(tokens)
    if rank:
        scaled = project_to_principal_components(scaled, rank)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(self_expression, "solver_library", solver_library)
        return np.asarray(solve_self_expression(scaled, AdmmOptions(rho=30.0, eps=1e-6, max_iter=20000)).matrix)


def sharing(expression: Array) -> Array:
    """The score without the subspaces' sizes, which jump where a label does."""
    total = expression.sum(axis=1)
    return np.asarray((total - total.min()) / np.ptp(total))


@pytest.mark.parametrize("rank", [0, 12])
@pytest.mark.parametrize(("dtype", "tolerance", "slack"), [("float64", 1e-9, 0), ("float32", 2e-4, 1)])
def test_a_run_in_two_parts_is_one_run(rank: int, dtype: str, tolerance: float, slack: int) -> None:
    """By eps and by max_iter. float32: a residual may cross eps an iteration sooner."""
    tokens = clip(8, 0.1)
    whole = scored(tokens, rank, dtype)
    first = scored(tokens, rank, dtype, eps=2e-3)
    second = scored(tokens, rank, dtype, warm_start=first)
    assert 0 < second.iterations < whole.iterations
    assert abs(first.iterations + second.iterations - whole.iterations) <= slack
    if first.iterations + second.iterations == whole.iterations:
        np.testing.assert_allclose(second.self_expression, whole.self_expression, atol=tolerance)
        np.testing.assert_allclose(second.sharing_score, whole.sharing_score, atol=tolerance)
    with pytest.warns(RuntimeWarning, match="stopped after 50 iterations"):
        cut = scored(tokens, rank, dtype, max_iter=50)
    assert abs(50 + scored(tokens, rank, dtype, warm_start=cut).iterations - whole.iterations) <= slack


def test_an_error_term_at_work_is_part_of_the_state() -> None:
    tokens = clip(4, 0.2)
    unusual = {"rho": 20.0, "alpha_e": 3.0, "alpha_z": 100.0}  # E large and dense
    whole = scored(tokens, eps=1e-4, **unusual)
    first = scored(tokens, eps=1e-2, **unusual)
    second = scored(tokens, eps=1e-4, warm_start=first, **unusual)
    assert first.state is not None
    assert (first.state.error[:-1] != 0).any()
    assert first.iterations + second.iterations == whole.iterations
    np.testing.assert_allclose(second.self_expression, whole.self_expression, atol=1e-9)


@pytest.mark.parametrize(("noise", "rank", "dtype"), [(0.05, 0, "float64"), (0.2, 0, "float32"), (0.05, 12, "float32")])
def test_a_growing_clip_takes_fewer_iterations_and_ends_nearer_to_the_optimum(
    noise: float, rank: int, dtype: str
) -> None:
    """At the paper's eps, where no run is at the optimum. 0.7 leaves a margin: at most 0.4 was measured."""
    warm = scored(clip(8, noise), rank, dtype)
    for frames in (12, 16):
        tokens = clip(frames, noise)
        cold = scored(tokens, rank, dtype)
        warm = scored(tokens, rank, dtype, warm_start=warm)
        best = optimum(tokens, rank)
        assert warm.converged
        assert warm.residual < 2e-4
        assert warm.iterations < 0.7 * cold.iterations
        for of in (np.asarray, sharing):
            assert np.abs(of(warm.self_expression) - of(best)).max() < np.abs(of(cold.self_expression) - of(best)).max()


def test_a_tight_eps_gives_the_same_answer_either_way() -> None:
    """At eps = 1e-7 both are at the optimum to about 1e-3 in C, and so their scores are within 2e-3."""
    tokens = clip(12, 0.1)
    cold = scored(tokens, eps=1e-7)
    warm = scored(tokens, eps=1e-7, warm_start=scored(clip(8, 0.1), eps=1e-7))
    np.testing.assert_allclose(warm.self_expression, cold.self_expression, atol=5e-3)
    np.testing.assert_allclose(warm.sharing_score, cold.sharing_score, atol=2e-3)
    assert warm.iterations < 0.7 * cold.iterations


def test_both_forms_take_the_same_warm_steps(solver: str, solver_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = clip(10, 0.1)
    before = scored(tokens[: 8 * PATCHES], 12)
    ours = scored(tokens, 12, warm_start=before)
    monkeypatch.setattr(self_expression, "solver_library", lambda: solver_path if solver == "arrays" else None)
    other = scored(tokens, 12, warm_start=before)
    assert ours.iterations == other.iterations
    np.testing.assert_allclose(ours.self_expression, other.self_expression, atol=1e-9)


def test_torch_tensors_stay_torch_tensors() -> None:
    tokens = torch.tensor(clip(6, 0.1))
    numbers = tokens.numpy()
    before = scored(tokens[: 4 * PATCHES])
    warm = scored(tokens, warm_start=before)
    assert before.state is not None
    assert isinstance(before.state.x, torch.Tensor)
    expected = scored(numbers, warm_start=scored(numbers[: 4 * PATCHES]))
    assert warm.iterations == expected.iterations
    np.testing.assert_allclose(warm.self_expression.numpy(), expected.self_expression, atol=1e-9)


def test_a_state_is_left_as_it_was_and_kept_only_when_asked_for() -> None:
    tokens = clip(4, 0.1)
    first = scored(tokens, eps=1e-2)
    assert first.state is not None
    x, error = first.state.x.copy(), first.state.error.copy()
    scored(tokens, warm_start=first)
    scored(clip(5, 0.1), warm_start=first)
    np.testing.assert_array_equal(first.state.x, x)
    np.testing.assert_array_equal(first.state.error, error)
    assert subspace_score(tokens, K, return_details=True).state is None


def test_other_settings_or_other_tokens_start_anew_from_a_state() -> None:
    """Neither continues the run; both end at their own optimum."""
    tokens = clip(6, 0.1)
    state = scored(tokens, eps=1e-3)
    for changed, options in ((tokens, {"rho": 100.0}), (clip(6, 0.1, seed=1), {}), (tokens[:, :40], {})):
        warm = scored(changed, eps=1e-7, warm_start=state, **options)
        cold = scored(changed, eps=1e-7, **options)
        np.testing.assert_allclose(warm.self_expression, cold.self_expression, atol=1e-2)


def test_a_clip_that_stood_still_so_far() -> None:
    """All tokens equal: nothing was solved, and the longer clip starts from zeros."""
    still = np.ones((8, 64))
    tokens = np.concatenate([still, clip(1, 0.1)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warm = scored(tokens, warm_start=scored(still))
    assert warm.iterations == scored(tokens).iterations


def test_what_cannot_be_started_from_is_refused() -> None:
    tokens = clip(3, 0.1)
    state = scored(tokens, eps=1e-1)
    bad = [
        (tokens, subspace_score(tokens, K, eps=1e-1, return_details=True), ["warm_start"]),
        (tokens, "details", ["warm_start"]),
        (tokens[:-1], state, ["warm_start", 48, 47]),
        (torch.tensor(tokens), state, ["warm_start"]),
    ]
    for given, start, named in bad:
        with refused("subspace_score", *named):
            subspace_score(given, K, warm_start=start)
