"""Odd tokens and absurd settings: a clear refusal or a defined score, in both forms of the solver and both types."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import scorable_tokens
import torch
from golden_scores import planted_tokens
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import refused

from va_export.anchor import SubspaceScore, self_expression, spectral, subspace_score
from va_export.errors import VaExportError

Array = np.ndarray[Any, Any]
PROPERTY = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the fixture only chooses the form
)


@pytest.fixture(autouse=True, params=["compiled", "arrays"])
def _solver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    path = request.getfixturevalue("solver_path") if request.param == "compiled" else None
    monkeypatch.setattr(self_expression, "solver_library", lambda: path)


def random_tokens(n: int = 24, dim: int = 6, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((n, dim))


def scored(tokens: Any, dtype: Any = "float64", n_subspaces: Any = 3, **options: Any) -> SubspaceScore:
    """The score, which is defined whatever the tokens were."""
    details = subspace_score(tokens, n_subspaces, dtype=dtype, return_details=True, **options)
    score = np.asarray(details.sharing_score)
    assert score.shape == (len(tokens),)
    assert score.dtype == dtype
    assert np.isfinite(score).all()
    assert (score >= 0).all()
    assert (score <= 1).all()
    assert np.isfinite(np.asarray(details.self_expression)).all()
    return details


RANK_2 = random_tokens(24, 2) @ random_tokens(2, 9, seed=1)
DEFINED: dict[str, tuple[Array, dict[str, Any]]] = {
    "one_frame": (random_tokens(16), {}),
    "every_token_four_times": (np.repeat(random_tokens(6), 4, axis=0), {}),
    "two_distinct_tokens": (np.repeat(random_tokens(2), 12, axis=0), {}),
    "two_distinct_tokens_on_one_component": (np.repeat(random_tokens(2), 12, axis=0), {"pca_rank": 1}),
    "all_equal_but_one": (np.concatenate([np.ones((23, 6)), random_tokens(1)]), {}),
    "zero_columns": (np.concatenate([random_tokens(), np.zeros((24, 3))], axis=1), {}),
    "rank_below_pca_rank": (RANK_2, {"pca_rank": 5}),
    "one_feature": (np.abs(random_tokens(24, 1)) + 0.1, {}),
    "two_tokens": (random_tokens(2), {"n_subspaces": 2}),
    "as_many_subspaces_as_tokens": (random_tokens(5), {"n_subspaces": 5}),
    "far_from_the_origin": (random_tokens() + 1e8, {"pca_rank": 3}),
    "equal_to_rounding": (1.0 + 1e-15 * random_tokens(), {}),
    "largest_rho": (random_tokens(), {"rho": 1e20}),
    "largest_alpha_e": (random_tokens(), {"alpha_e": 1e20}),
    "smallest_alpha_e": (random_tokens(), {"alpha_e": 1e-20}),
    "largest_alpha_z": (random_tokens(), {"alpha_z": 1e20}),
    "smallest_alpha_z": (random_tokens(), {"alpha_z": 1e-20}),
    "huge_eps": (random_tokens(), {"eps": 1e30}),
    "huge_max_iter": (random_tokens(), {"max_iter": 10**30}),
    "automatic_of_two": (random_tokens(2), {"n_subspaces": "auto"}),
    "automatic_of_duplicates": (np.repeat(random_tokens(6), 4, axis=0), {"n_subspaces": "auto"}),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", DEFINED)
def test_what_is_odd_has_a_score(name: str, dtype: str) -> None:
    tokens, options = DEFINED[name]
    details = scored(tokens, dtype, **options)
    assert details.converged
    if name == "huge_eps":
        assert details.iterations == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{"eps": 1e-30}, {"rho": 1.0}, {"max_iter": 1}], ids=str)
def test_what_cannot_converge_ends_at_max_iter_with_its_residual(options: dict[str, Any], dtype: str) -> None:
    with pytest.warns(RuntimeWarning, match=r"stopped after \d+ iterations with residual [0-9.e-]+, above eps"):
        details = scored(random_tokens(), dtype, **{"max_iter": 300, **options})
    assert not details.converged
    assert details.iterations == options.get("max_iter", 300)
    assert np.isfinite(details.residual)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("value", [0.0, -0.0, 3.0, -1e300])
@pytest.mark.parametrize("n_subspaces", [3, "auto"])
def test_equal_tokens_score_zero(value: float, n_subspaces: Any, dtype: str) -> None:
    details = scored(np.full((8, 4), value), dtype, n_subspaces)
    np.testing.assert_array_equal(details.sharing_score, 0.0)
    assert details.iterations == 0


REFUSED: list[tuple[Array, dict[str, Any], list[object]]] = [
    (random_tokens(0), {}, [(0, 6)]),
    (random_tokens(24, 0), {}, [(24, 0)]),
    (random_tokens(1), {"n_subspaces": 1}, [1]),
    (random_tokens(1), {"n_subspaces": "auto"}, [1]),
    (random_tokens(2), {}, [2, 3]),
    (random_tokens(), {"pca_rank": 7}, ["pca_rank", 7]),
    (np.where(np.arange(24)[:, None] == 5, 0.0, random_tokens()), {}, ["token 5"]),
    (np.arange(-12.0, 12.0)[:, None] * np.ones(3), {}, ["token 12"]),
    (np.eye(24), {}, ["token 0"]),
    (random_tokens(), {"n_subspaces": "all"}, ["n_subspaces", "all"]),
    *(
        (random_tokens(), {name: value}, [name, value])
        for name in ("rho", "alpha_e", "alpha_z", "eps")
        for value in (0.0, -1.0, np.nan, np.inf, -np.inf)
    ),
    *((random_tokens(), {name: value}, [name, value]) for name in ("rho", "alpha_e") for value in (1e30, 1e-30)),
    *((random_tokens(), {"max_iter": value}, ["max_iter", value]) for value in (0, -1, 2.5, True)),
    *(
        (np.where(np.eye(24, 6) > 0, bad, random_tokens()), {}, ["NaN", "infinity"])
        for bad in (np.nan, np.inf, -np.inf)
    ),
    (random_tokens() * np.geomspace(1e-18, 1e18, 24)[:, None], {}, ["token 0"]),
    *(
        (random_tokens(), {"rho": rho, "max_iter": 300}, [300, "residual 2.37"]) for rho in (1e-20, 1e-10, 1e-2)
    ),  # C is 0
]


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", [np.asarray, torch.tensor], ids=["numpy", "torch"])
def test_what_has_no_score_is_refused_by_name(kind: Any, dtype: str) -> None:
    for tokens, options, named in REFUSED:
        with refused("subspace_score", *named):
            subspace_score(kind(tokens), **{"n_subspaces": 3, "dtype": dtype, **options})


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [np.asarray, torch.tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("name", scorable_tokens.TOKENS)
def test_what_float32_scores_and_refuses(name: str, kind: Any) -> None:
    tokens, verdict = scorable_tokens.TOKENS[name]
    if verdict == scorable_tokens.REFUSED:
        with pytest.raises(VaExportError) as refusal:
            subspace_score(kind(tokens), 3)
        assert refusal.value.where == "subspace_score"
        return
    assert (scored(kind(tokens), "float32").iterations == 0) == (verdict == scorable_tokens.EQUAL)


@pytest.mark.parametrize("name", ["turned axes", "one far too long"])
def test_float64_goes_on_to_a_residual_that_is_no_result(name: str) -> None:
    """Seen before: a warning, and scores that meant nothing."""
    with refused("subspace_score", 10000):
        subspace_score(scorable_tokens.TOKENS[name][0], 3, dtype="float64")
    assert scored(scorable_tokens.TOKENS["one too short"][0]).converged


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 2.0**18), ("float64", 2.0**47)])
@pytest.mark.parametrize("order", range(4))
def test_the_range_of_lengths_is_the_types_whatever_the_order(dtype: str, bound: float, order: int) -> None:
    """On one axis, for which products are those of lengths: the rule written out, on either side by 1 %."""
    shuffled = np.random.default_rng(order).permutation(6)
    for factor, is_scored in ((0.99, True), (1.01, False)):
        tokens = np.array([1 / (bound * factor), 0.5, 0.25, 0.75, 1.0, 0.9])[:, None] * np.eye(1, 5)[:, ::-1]
        lone = self_expression.penalty_weights
        if is_scored:
            assert lone(tokens[shuffled].astype(dtype), 800.0, 800.0)[1] == pytest.approx(800.0 * bound * factor)
            continue
        with refused("subspace_score", f"token {shuffled.argmin()}"):
            lone(tokens[shuffled].astype(dtype), 800.0, 800.0)


def test_repeated_eigenvalues_that_a_subset_solver_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    """LAPACK's evr, asked for the last K vectors, was seen to give none of two exact groups' and no error."""
    whole = spectral.eigh

    def lossy(matrix: Array, **options: Any) -> tuple[Array, Array]:
        eigenvalues, vectors = whole(matrix, **options)
        return (eigenvalues[:0], vectors[:, :0]) if options["driver"] == "evr" else (eigenvalues, vectors)

    tokens, truth = planted_tokens(12, 3, 20)
    expected = scored(tokens)
    monkeypatch.setattr(spectral, "eigh", lossy)
    ours = scored(tokens)
    assert len(set(zip(ours.labels, expected.labels, strict=True))) == len(set(truth)) == 3


# What the mathematics promises


@PROPERTY
@given(seed=st.integers(0, 10_000), copies=st.integers(2, 4))
def test_duplicates_of_a_frame_share_alike(seed: int, copies: int) -> None:
    """Exchanging equal tokens changes nothing about the problem or the zero start, and so nothing about an iterate:
    C stays when its rows and columns are exchanged alike."""
    frame = random_tokens(5, 8, seed)
    details = scored(np.tile(frame, (copies, 1)))
    order = np.random.default_rng(seed).permutation(copies)
    exchanged = np.concatenate([np.arange(5) + 5 * copy for copy in order])
    c = details.self_expression
    np.testing.assert_allclose(c[np.ix_(exchanged, exchanged)], c, atol=1e-9)
    totals = c.sum(axis=1).reshape(copies, 5)
    np.testing.assert_allclose(totals, np.broadcast_to(totals[0], totals.shape), atol=1e-9)


@PROPERTY
@given(seed=st.integers(0, 10_000), extra=st.integers(1, 5))
def test_features_that_are_zero_do_not_matter(seed: int, extra: int) -> None:
    """They add nothing to a norm or a product, so nothing to λ, and E stays zero there."""
    tokens = random_tokens(20, 7, seed)
    plain, wider = scored(tokens), scored(np.concatenate([tokens, np.zeros((20, extra))], axis=1))
    assert wider.iterations == plain.iterations
    np.testing.assert_allclose(wider.self_expression, plain.self_expression, atol=1e-9)


@PROPERTY
@given(seed=st.integers(0, 10_000), size=st.floats(0.1, 100.0))
def test_a_common_offset_does_not_matter_with_pca(seed: int, size: float) -> None:
    """Tokens are centred first. Without PCA λ_z changes with an offset, and so does the score."""
    tokens = random_tokens(20, 7, seed)
    moved = tokens + size * random_tokens(1, 7, seed + 1)
    plain, ours = scored(tokens, pca_rank=4), scored(moved, pca_rank=4)
    np.testing.assert_allclose(ours.self_expression, plain.self_expression, atol=1e-6)
    assert scored(tokens).lambda_z != pytest.approx(scored(tokens + 10.0).lambda_z)


@PROPERTY
@given(seed=st.integers(0, 10_000), factor=st.floats(0.01, 100.0))
def test_alphas_undo_what_a_change_of_lambda_does(seed: int, factor: float) -> None:
    """λ is α over a size of the tokens: scaling tokens by s multiplies λ_e by 1/s and λ_z by 1/s²; alphas multiply
    theirs, and leave the other."""
    tokens = random_tokens(16, 5, seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="subspace_score stopped")
        plain = scored(tokens, max_iter=2)
        changed = scored(tokens, max_iter=2, alpha_e=800.0 * factor)
    assert changed.lambda_e == pytest.approx(plain.lambda_e * factor, rel=1e-12)
    assert changed.lambda_z == plain.lambda_z
