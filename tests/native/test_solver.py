"""The compiled solver against the textbook and the array form, on every instruction set that this processor has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refused
from threadpoolctl import threadpool_limits

import va_export.native
from va_export.anchor import self_expression
from va_export.anchor.self_expression import AdmmOptions, factor_system, penalty_weights, solve_self_expression
from va_export.anchor.textbook import textbook_self_expression
from va_export.errors import VaExportError
from va_export.native import solver
from va_export.native.solver import SolverArrays, finish_state, native_iteration, solver_library

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module", autouse=True)
def _one_blas_thread() -> Iterator[None]:
    """The textbook's matrices are too small for two."""
    with threadpool_limits(limits=1):
        yield


def tokens_on_planes(n: int, dim: int, seed: int = 0) -> Array:
    """[n, dim] float64: noisy points of four planes."""
    rng = np.random.default_rng(seed)
    planes = rng.standard_normal((4, 3, dim))
    tokens = np.einsum("nr,nrd->nd", rng.standard_normal((n, 3)), planes[np.arange(n) % 4])
    return np.asarray(tokens + 0.05 * rng.standard_normal((n, dim)))


def solve(path: Path, tokens: Array, options: AdmmOptions, **choices: Any) -> tuple[Array, int, float]:
    """(C, iterations, residual) of the library itself, with its choices given."""
    lambda_e, lambda_z = penalty_weights(tokens, options.alpha_e, options.alpha_z)
    factors = factor_system(tokens.T, lambda_e, lambda_z, options.rho)
    n = tokens.shape[0]
    arrays = SolverArrays(
        basis=np.ascontiguousarray(factors.basis),
        f_t=np.ascontiguousarray(factors.f.T),
        gain=np.ascontiguousarray(factors.gain[:, 0]),
        spectrum=np.ascontiguousarray(factors.spectrum[:, 0]),
        state=np.zeros((n, n), dtype=tokens.dtype),
        error=np.zeros((n, factors.basis.shape[0]), dtype=tokens.dtype),
    )
    with native_iteration(path, arrays, options.rho, factors.error_threshold, **choices) as iteration:
        iterations, residual = iteration.advance(options.max_iter, options.eps)
    finish_state(path, arrays.state, options.rho)
    return arrays.state, iterations, residual


SHAPES = [(2, 1), (7, 3), (23, 64), (24, 5), (25, 24), (64, 63), (65, 130), (130, 20), (200, 300)]
UNUSUAL = {"rho": 20.0, "alpha_e": 3.0, "alpha_z": 100.0, "eps": 1e-4, "max_iter": 60}  # E large and dense
PAPER = {"max_iter": 60}


@pytest.mark.parametrize("settings", [PAPER, UNUSUAL], ids=["paper", "dense_error"])
@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 2e-4)])
def test_every_shape_and_instruction_set_equals_the_textbook(
    solver_path: Path, isa: str, dtype: type, tolerance: float, settings: dict[str, Any]
) -> None:
    """Tiles, groups, panels and vectors that are full and not; D below, at and above N."""
    for n, dim in SHAPES:
        tokens = tokens_on_planes(n, dim).astype(dtype)
        reference = textbook_self_expression(tokens, **settings)
        try:
            ours, iterations, residual = solve(solver_path, tokens, AdmmOptions(**settings), isa=isa, threads=2)
        except VaExportError as error:
            pytest.skip(error.what)
        assert ours.dtype == dtype
        assert abs(iterations - reference.iterations) <= (0 if dtype is np.float64 else 1), (n, dim)
        if iterations == reference.iterations:
            np.testing.assert_allclose(ours, reference.self_expression, rtol=0, atol=tolerance, err_msg=f"{n}, {dim}")
            assert residual == pytest.approx(reference.residual, rel=1e-2, abs=n * tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "dim", "most"), [(150, 20, 120), (800, 150, 12)], ids=["small_tasks", "large_tasks"])
def test_the_number_of_threads_changes_no_bit(solver_path: Path, dtype: type, n: int, dim: int, most: int) -> None:
    """Nor how many columns a task has: of the 800 tokens, 96 for one thread, 48 for two and 24 for more."""
    tokens = tokens_on_planes(n, dim).astype(dtype)
    options = AdmmOptions(max_iter=most)
    alone = solve(solver_path, tokens, options, threads=1)
    exact = textbook_self_expression(tokens, max_iter=most)
    np.testing.assert_allclose(alone[0], exact.self_expression, rtol=0, atol=1e-10 if dtype is np.float64 else 2e-4)
    for threads in (2, 3, 64):
        together = solve(solver_path, tokens, options, threads=threads)
        np.testing.assert_array_equal(together[0], alone[0])
        assert together[1:] == alone[1:]


def test_calls_in_pieces_change_no_bit(solver_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt is heard between calls."""
    monkeypatch.setattr(self_expression, "solver_library", lambda: solver_path)
    tokens = tokens_on_planes(60, 20)
    whole = solve_self_expression(tokens, AdmmOptions())
    monkeypatch.setattr(self_expression, "_iterations_a_call", lambda work: 7)
    pieces = solve_self_expression(tokens, AdmmOptions())
    np.testing.assert_array_equal(pieces.matrix, whole.matrix)
    assert (pieces.iterations, pieces.residual) == (whole.iterations, whole.residual)
    assert whole.iterations > 20


def test_arrays_that_do_not_fit_are_refused(solver_path: Path) -> None:
    square, vector = np.zeros((4, 4)), np.zeros(4)
    arrays = SolverArrays(square, square, vector, vector, np.zeros((4, 4), np.float32), square)
    with pytest.raises(ValueError, match="basis is"), native_iteration(solver_path, arrays, 1.0, 1.0):
        pass


def test_an_unknown_instruction_set_is_an_error(solver_path: Path) -> None:
    with refused("subspace_score", "avx3"):
        solve(solver_path, tokens_on_planes(8, 3), AdmmOptions(max_iter=2), isa="avx3")


def test_small_problems_take_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv(solver.THREADS_VARIABLE, raising=False)
    monkeypatch.setattr(solver.os, "sched_getaffinity", lambda pid: set(range(16)))
    assert solver._thread_count(200 * 65 * 200) == 1
    assert solver._thread_count(2048 * 65 * 2048) == 16
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert solver._thread_count(2048 * 65 * 2048) == 3
    monkeypatch.setenv(solver.THREADS_VARIABLE, "2")
    assert solver._thread_count(2048 * 65 * 2048) == 2


def test_the_library_may_be_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(solver.LIBRARY_VARIABLE, raising=False)
    monkeypatch.setattr(va_export.native, "__path__", [str(tmp_path)])
    assert solver_library() is None
    assert solve_self_expression(tokens_on_planes(12, 3), AdmmOptions(max_iter=5)).iterations == 5
    (tmp_path / solver.LIBRARY_NAME).touch()
    assert solver_library() == tmp_path / solver.LIBRARY_NAME


def test_a_variable_that_names_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(solver.LIBRARY_VARIABLE, str(tmp_path / "absent.so"))
    with refused(tmp_path / "absent.so", solver.LIBRARY_VARIABLE):
        solver_library()
    (tmp_path / "text.so").write_text("not ELF")
    monkeypatch.setenv(solver.LIBRARY_VARIABLE, str(tmp_path / "text.so"))
    with refused(tmp_path / "text.so"):
        solve_self_expression(tokens_on_planes(12, 3), AdmmOptions(max_iter=5))
