"""The two ways in which the SubspaceScore solver multiplies, on the CPU: against float64 and against each other."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import asdict, replace
from score_case import Array, score_on_host

from va_export.anchor import subspace_score
from va_export.anchor.projection import scale_to_unit
from va_export.anchor.self_expression import penalty_weights
from va_export.native import subspace_score_params
from va_export.settings import ScoreSettings

sys.path.insert(0, str(Path(__file__).parents[1]))
from golden_scores import load_golden_score, planted_tokens

REPOSITORY = Path(__file__).parents[2]
PRODUCTS_VARIABLE = "VA_EXPORT_SCORE_PRODUCTS"  # as va_export.native.subspace_score has it, which needs PyTorch
SIMPLE, TENSOR_CORE = "simple", "tensor_core"
FORMS = [SIMPLE, TENSOR_CORE]
# Of an entry, relative to the sum of |a_k b_k|: in float32 up to depth roundings of 2^-24 and as many of the sum; on
# tensor cores 2^-20 of the split, 12 truncations of 2^-23 a stage of 32 and one rounding a stage. 64 of 2^-24 hold for
# the depths below, as they do not for products of TF32 alone, which are off by 2^-11.
UNIT = 2.0**-24


def pointer(array: Array) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)


def magnitudes(kind: str, shape: tuple[int, int], seed: int) -> Array:
    rng = np.random.default_rng(seed)
    plain = rng.standard_normal(shape)
    if kind == "wide":  # large beside small ones, which TF32 alone would lose
        plain = plain * 2.0 ** rng.integers(-30, 30, shape)
    elif kind == "cancelling":  # sums far smaller than their terms
        plain[:, 1::2] = -plain[:, ::2] * (1 + 1e-3 * rng.standard_normal(plain[:, ::2].shape))
    elif kind == "biased":  # all of one sign: truncations add up
        plain = 1.0 + np.abs(plain)
    elif kind == "odd_bits":  # nothing left to the lower half of the mantissa but ones
        bits = plain.astype(np.float32).view(np.uint32) | np.uint32(0x1FFF)
        plain = bits.view(np.float32).astype(np.float64)
    return np.ascontiguousarray(plain.astype(np.float32))


def assert_products_equal(found: Array, a: Array, b: Array, depth: int) -> None:
    """Of a [rows, depth] and b [depth, columns], entry by entry."""
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    bound = (64 + depth / 8) * UNIT * (np.abs(wide_a) @ np.abs(wide_b))
    assert (np.abs(found - wide_a @ wide_b) <= bound).all()


@pytest.mark.parametrize("kind", ["plain", "wide", "cancelling", "biased", "odd_bits"])
@pytest.mark.parametrize("is_depth_first", [False, True])
@pytest.mark.parametrize(("form", "shape"), [(SIMPLE, (64, 64)), (TENSOR_CORE, (128, 128)), (TENSOR_CORE, (64, 128))])
def test_a_tiles_product(
    score_library: ctypes.CDLL, kind: str, is_depth_first: bool, form: str, shape: tuple[int, int]
) -> None:
    (rows, columns), depth = shape, 192
    a, b = magnitudes(kind, (rows, depth), 1), np.ascontiguousarray(magnitudes(kind, (columns, depth), 2).T)
    given = np.ascontiguousarray(a if is_depth_first else a.T)
    found = np.full((rows, columns), np.nan, np.float32)
    how = int(form == TENSOR_CORE), int(is_depth_first)
    arguments = *how, pointer(given), pointer(b), rows, columns, depth, pointer(found)
    assert score_library.run_score_product(*arguments) == 0
    assert_products_equal(found, a, b, depth)


@pytest.mark.parametrize("kind", ["plain", "wide", "biased", "odd_bits"])
@pytest.mark.parametrize("form", FORMS)
def test_the_thin_forms_products(score_library: ctypes.CDLL, kind: str, form: str) -> None:
    factor, right = magnitudes(kind, (64, 64), 3), magnitudes(kind, (64, 64), 4)
    tn, nn = np.zeros((64, 64), np.float32), np.zeros((64, 64), np.float32)
    arrays = factor, right, tn, nn
    assert score_library.run_score_thin_products(int(form == TENSOR_CORE), *map(pointer, arrays)) == 0
    assert_products_equal(tn, np.ascontiguousarray(factor.T), right, 64)
    assert_products_equal(nn, factor, right, 64)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("n", "dim", "settings"),
    [
        (150, 70, ScoreSettings(n_subspaces=4, max_iter=3)),  # thin, two chunks of features
        (130, 20, ScoreSettings(n_subspaces=4, max_iter=4)),  # thin, all features in one tile
        (140, 150, ScoreSettings(n_subspaces=3, max_iter=3)),  # Gram form, tiles beyond the edge
        (70, 66, ScoreSettings(n_subspaces=3, alpha_e=20.0, max_iter=5)),  # Gram form, many errors E
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:subspace_score stopped")
def test_both_forms_equal_the_reference_in_every_grid(
    score_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, form: str, n: int, dim: int, settings: ScoreSettings
) -> None:
    """And no bit depends on how many blocks there are, nor on the order of the threads."""
    monkeypatch.setenv(PRODUCTS_VARIABLE, form)
    groups = settings.n_subspaces
    tokens = planted_tokens(-(-n // groups), groups, dim, noise=0.05, seed=0)[0][:n].astype(np.float32)
    expected = subspace_score(tokens, **asdict(settings), dtype="float64", return_details=True)
    runs = [score_on_host(score_library, tokens, settings, blocks=b, schedule=s) for b, s in ((2, 0), (1, 1), (3, 2))]
    for ours in runs:
        np.testing.assert_allclose(ours.self_expression, expected.self_expression, rtol=0, atol=1e-5)
        np.testing.assert_allclose(ours.sharing_score, expected.sharing_score, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(ours.self_expression, runs[0].self_expression)
        np.testing.assert_array_equal(ours.sharing_score, runs[0].sharing_score)
        assert (ours.iterations, ours.residual) == (runs[0].iterations, runs[0].residual)


def test_golden_tokens_in_float32_products(score_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensor cores test_subspace_score_kernel.py has them; the iterations are float64's in both."""
    golden = load_golden_score("n256_d96_r0")
    settings = ScoreSettings(n_subspaces=golden.n_subspaces, eps=5e-3)
    expected = subspace_score(golden.tokens, **asdict(settings), dtype="float64", return_details=True)
    monkeypatch.setenv(PRODUCTS_VARIABLE, SIMPLE)
    ours = score_on_host(score_library, golden.tokens, settings)
    assert ours.iterations == expected.iterations
    np.testing.assert_allclose(ours.sharing_score, expected.sharing_score, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def looking_library(tmp_path_factory: pytest.TempPathFactory, cxx: str, host_flags: list[str]) -> ctypes.CDLL:
    """The kernels with a solver that always computes E, compiled from a copy of the source."""
    folder = tmp_path_factory.mktemp("looking")
    source = REPOSITORY / "plugins" / "subspace_score"
    copied = folder / "subspace_score"
    copied.mkdir()
    for file in source.iterdir():
        copied.joinpath(file.name).write_text(file.read_text())
    gram = copied / "solve_gram.cuh"
    condition = "const bool stays_zero = largest"
    assert condition in gram.read_text()
    gram.write_text(gram.read_text().replace(condition, "const bool stays_zero = false && largest"))
    host = REPOSITORY / "tests" / "plugins" / "simt" / "subspace_score_host.cpp"
    path = folder / "looking.so"
    command = [cxx, f"-I{folder}", *host_flags, "-O2", "-shared", "-fPIC", str(host), "-o", str(path)]
    subprocess.run(command, check=True)
    return subspace_score_params.bind(ctypes.CDLL(str(path)))


def panels_that_stay_zero(tokens: Array, settings: ScoreSettings, side: int) -> int:
    """How often, in ADMM's first iterations in float64, a panel is so near to where it was last looked at that no entry
    of E can leave zero; solve_gram.cuh has the bound, solve.cuh the equations."""
    scaled, _ = scale_to_unit(np.asarray(tokens, np.float64))
    lambda_e, lambda_z = penalty_weights(scaled, settings.alpha_e, settings.alpha_z)
    u, rho, theta, n = np.sqrt(lambda_z) * scaled.T, settings.rho, 1 / settings.rho, len(tokens)
    one, threshold, longest = np.eye(n), lambda_e / np.sqrt(lambda_z), np.linalg.norm(u, axis=1).max()
    inverse = np.linalg.inv(u.T @ u + rho * (1 + one))
    x, error, error_0 = np.zeros((n, n)), np.zeros_like(u), np.zeros(n)
    before, largest = np.full((n, n), np.inf), np.full(n, np.inf)  # of each column when its panel was last looked at
    rounding, left_out = 4 * (-(-n // 64) * 64 + 64) * UNIT, 0
    for _ in range(settings.max_iter):
        dual = np.where(one == 1, x, np.clip(x, -theta, theta))
        step = (one - rho * inverse) @ (one - x + 2 * dual) - inverse @ (u.T @ error + np.sqrt(rho) * error_0)
        x = x - dual + step
        rest = one - (x - dual)
        error_0 = error_0 - np.sqrt(rho) * rest.sum(axis=0)
        remainder = u @ rest
        error = remainder - np.clip(remainder, -threshold, threshold)
        moved = 1.001 * np.linalg.norm(rest - before, axis=0)
        bound = longest * (moved + rounding * (np.linalg.norm(rest, axis=0) + moved))
        for start in range(0, n, side):
            panel = slice(start, start + side)
            if largest[panel].max() + bound[panel].max() < 0.999 * threshold:
                left_out += 1
                continue
            before[:, panel], largest[panel] = rest[:, panel], np.abs(remainder[:, panel]).max()
    return left_out


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("alpha_e", [20000.0, 4000.0, 5.0], ids=["far", "near", "beyond"])
def test_what_is_left_out_changes_no_bit(
    score_library: ctypes.CDLL,
    looking_library: ctypes.CDLL,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    alpha_e: float,
) -> None:
    """With E far from its threshold, near it, and beyond it; and it is left out where the bound says so."""
    monkeypatch.setenv(PRODUCTS_VARIABLE, form)
    tokens = planted_tokens(24, 3, 66, noise=0.05, seed=0)[0][:70].astype(np.float32)
    settings = replace(ScoreSettings(n_subspaces=3, max_iter=30), alpha_e=alpha_e)
    ours = score_on_host(score_library, tokens, settings)
    looking = score_on_host(looking_library, tokens, settings)
    expected = panels_that_stay_zero(tokens, settings, 64 if form == SIMPLE else 128)
    assert looking.panels_left_out == 0
    assert abs(ours.panels_left_out - expected) <= 1  # one decision may hang on a rounding
    assert (expected > 5) == (alpha_e > 5.0)
    np.testing.assert_array_equal(ours.self_expression, looking.self_expression)
    np.testing.assert_array_equal(ours.sharing_score, looking.sharing_score)
    assert (ours.iterations, ours.residual) == (looking.iterations, looking.residual)
