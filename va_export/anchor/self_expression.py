"""Sparse self-expression of tokens by ADMM, from one N × N state; `textbook.py` is the paper's literal form.

Notation: Y = tokensᵀ [D, N], U = [√λ_z Y; √ρ 1ᵀ], E' = [√λ_z E; δ₁ᵀ/√ρ], θ = 1/ρ, T = Δ₂/ρ. The state is
X = A + T: off the diagonal C is its soft threshold and T = X − C its clip to [−θ, θ]; on the diagonal C = 0 and
T = X. With Z = C − T the paper's A-step (arXiv 2509.25151) is (UᵀU + ρI) A = Uᵀ(U − E') + ρZ. Let the columns of P
be orthonormal and span U's columns, with PᵀU = F and FFᵀ diagonal. Woodbury's identity makes the step

    g = (ρ + FFᵀ)⁻¹ (F − PᵀE' − FZ)      A = Z + Fᵀg      X⁺ = A + T = C + Fᵀg

and, because then U − UA = P (PᵀE' + ρg) =: R, the steps for E (first D rows) and δ₁ (last row) need no product
with A:

    E'⁺ = soft(R, λ_e/√λ_z) in the first D rows,      E' − R in the last.

So an iteration is two thin products, FZ and Fᵀg, around one elementwise pass over X, taken here over blocks of rows
that fit a cache: one N × N array is alive, and nothing of that size is factored or solved in the loop. For D >= N,
F is square. The same code runs on NumPy arrays and on torch tensors, on their device; on the host, the compiled form
of `va_export.native.solver` takes over where it is installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import array_api_compat
import numpy as np
from threadpoolctl import threadpool_limits

from va_export.anchor.iterations_left import IterationsLeft, OnProgress
from va_export.anchor.scorable import is_result, lone_token, no_expression, no_result, overflowed
from va_export.anchor.warm_start import SolverState, Start, start_of_run
from va_export.native.solver import SolverArrays, finish_state, native_iteration, solver_library

Array = Any  # numpy.ndarray or torch.Tensor: one dtype, one device

_HOST_BLOCK_BYTES = 1 << 21  # a block of X and its temporaries stay near a core
_DEVICE_BLOCK_BYTES = 1 << 28  # on a GPU a block only bounds the temporaries


@dataclass(frozen=True)
class AdmmOptions:
    """The solver's settings, with the paper's values."""

    rho: float = 300.0
    alpha_e: float = 800.0
    alpha_z: float = 800.0
    eps: float = 2e-4
    max_iter: int = 10000


@dataclass(frozen=True)
class SelfExpression:
    """How tokens express one another, and how the solver ended.

    Attributes:
        matrix: C [N, N]: column j writes token j as a combination of the others; zero diagonal.
        iterations: ADMM iterations taken.
        lambda_e, lambda_z: weights of the error terms.
        residual: max row sum of |A − C| at the end, divided by the factor on eps of a start from another clip's state;
            converged means below eps.
        converged: whether that was reached within max_iter.
        state: for a later start, if it was asked for.
    """

    matrix: Array
    iterations: int
    lambda_e: float
    lambda_z: float
    residual: float
    converged: bool
    state: SolverState | None = None


def solve_self_expression(
    tokens: Array,
    options: AdmmOptions,
    *,
    start: SolverState | None = None,
    keep_state: bool = False,
    on_progress: OnProgress | None = None,
) -> SelfExpression:
    """Solve for C.

    Args:
        tokens: [N, D], float32 or float64, finite, N >= 2; the result has its dtype and device.
        options: see `AdmmOptions`.
        start: state of an earlier run, over these tokens or over the first of them (`warm_start.py`); None: zeros.
        keep_state: return the state, another N × N array.
        on_progress: called about every second, and at the end, with the iterations taken and those expected in all.

    Raises:
        VaExportError: if a token cannot be expressed, the solver overflows or ends without a result (`scorable.py`),
            or the state does not fit.
    """
    lambda_e, lambda_z = penalty_weights(tokens, options.alpha_e, options.alpha_z)
    begin = start_of_run(tokens, options.rho, (lambda_e, lambda_z), start)
    factors = factor_system(tokens.T, lambda_e, lambda_z, begin.rho)
    library = solver_library() if is_on_host(tokens) else None
    stop = replace(options, eps=options.eps * begin.eps_factor)
    model = IterationsLeft(stop.eps, stop.max_iter)

    def report(iterations: int, residual: float) -> None:
        model.note(iterations, residual)
        if on_progress is not None:
            on_progress(iterations, model.expected())

    if library is None:
        matrix, state, iterations, residual = _iterate(factors, begin, stop, keep_state, report)
    else:
        matrix, state, iterations, residual = _iterate_natively(library, factors, begin, stop, keep_state, report)
    if not math.isfinite(residual):
        raise overflowed(iterations, name_of(tokens.dtype))
    if not is_result(residual, stop.eps):
        raise no_result(iterations, residual)
    kept = SolverState(*state, begin.rho, lambda_e, lambda_z) if state else None
    scaled = residual / begin.eps_factor
    return SelfExpression(matrix, iterations, lambda_e, lambda_z, scaled, residual < stop.eps, kept)


Report = Callable[[int, float], None]  # iterations, residual
Iterated = tuple[Array, tuple[Array, Array] | None, int, float]  # C, (X, E') if asked for, iterations, residual


def _iterate(factors: SystemFactors, begin: Start, stop: AdmmOptions, keep_state: bool, report: Report) -> Iterated:
    """By array operations, on any device."""
    xp, device = array_api_compat.array_namespace(factors.f), array_api_compat.device(factors.f)
    (m, _), n = factors.basis.shape, factors.f.shape[1]
    state = xp.zeros((n, n), dtype=factors.f.dtype, device=device) if begin.x is None else begin.x
    error = xp.zeros((m, n), dtype=factors.f.dtype, device=device) if begin.error is None else begin.error
    iteration = AdmmIteration(factors, state, error)
    iterations, residual = 0, math.inf
    while residual >= stop.eps and iterations < stop.max_iter:
        residual = iteration.advance(state)
        iterations += 1
        report(iterations, residual)
    dual = dual_of(state, 0, 1.0 / factors.rho)
    if keep_state:
        return state - dual, (state, error), iterations, residual
    state -= dual
    return state, None, iterations, residual


def _iterate_natively(
    library: Path, factors: SystemFactors, begin: Start, stop: AdmmOptions, keep_state: bool, report: Report
) -> Iterated:
    """By the compiled solver, for arrays on the host."""
    given = factors.f
    asarray = array_api_compat.array_namespace(given).asarray
    basis, f_t, gain, spectrum = (
        np.ascontiguousarray(np.asarray(array))
        for array in (factors.basis, given.T, factors.gain[:, 0], factors.spectrum[:, 0])
    )
    n, m = f_t.shape[0], basis.shape[0]
    state = np.zeros((n, n), f_t.dtype) if begin.x is None else np.ascontiguousarray(np.asarray(begin.x).T)
    error = np.zeros((n, m), f_t.dtype) if begin.error is None else np.ascontiguousarray(np.asarray(begin.error).T)
    arrays = SolverArrays(basis, f_t, gain, spectrum, state, error)
    iterations, residual = 0, math.inf
    with native_iteration(library, arrays, factors.rho, factors.error_threshold) as iteration:
        while residual >= stop.eps and iterations < stop.max_iter:
            most = min(stop.max_iter - iterations, _iterations_a_call(n * n * basis.shape[1]))
            taken, residual = iteration.advance(most, stop.eps)
            iterations += taken
            report(iterations, residual)
    kept = (asarray(state.T.copy()), asarray(error.T.copy())) if keep_state else None
    finish_state(library, state, factors.rho)
    return asarray(state), kept, iterations, residual


def _iterations_a_call(work: int) -> int:
    """So many, of so many multiplications each, that a keyboard interrupt, which waits for the call to end, is heard
    within about a second."""
    return max(1, (1 << 36) // work)


def penalty_weights(tokens: Array, alpha_e: float, alpha_z: float) -> tuple[float, float]:
    """(λ_e, λ_z) of tokens [N, D], with one block of rows of the Gram matrix at a time.

    λ_e = α_e / min_i max_{j≠i} ‖y_j‖₁: leaving out the largest norm leaves the second largest.
    λ_z = α_z / min_i max_{j≠i} |y_iᵀ y_j|.

    Raises:
        VaExportError: if a token is zero or orthogonal to every other (`scorable.lone_token`).
    """
    xp = array_api_compat.array_namespace(tokens)
    n = tokens.shape[0]
    norms = xp.sort(xp.sum(xp.abs(tokens), axis=1))
    mu_e = float(norms[-2])
    nearest = xp.zeros_like(norms)
    for start, stop in row_blocks(tokens, n):
        products = xp.abs(tokens[start:stop, :] @ tokens[start:, :].T)  # those before are in earlier blocks' columns
        block_diagonal(products, 0)[...] = 0.0
        nearest[start:stop] = xp.maximum(nearest[start:stop], xp.max(products, axis=1))
        nearest[start:] = xp.maximum(nearest[start:], xp.max(products, axis=0))
    lengths = xp.sqrt(xp.sum(tokens * tokens, axis=1))
    lone = lone_token(nearest, lengths, tokens.shape[1], name_of(tokens.dtype))
    if lone is not None:
        raise no_expression(lone, name_of(tokens.dtype))
    mu_z = float(xp.min(nearest))
    return alpha_e / mu_e, alpha_z / mu_z


@dataclass(frozen=True)
class SystemFactors:
    """What stays the same in every iteration; the module's text has the algebra and the names.

    Attributes:
        basis: P [D+1, R], R = min(D + 1, N).
        f: F [R, N].
        spectrum, gain: the diagonals of FFᵀ and of (ρ + FFᵀ)⁻¹, [R, 1] each.
        rho, error_threshold: ρ, and λ_e/√λ_z.
    """

    basis: Array
    f: Array
    spectrum: Array
    gain: Array
    rho: float
    error_threshold: float


def factor_system(y: Array, lambda_e: float, lambda_z: float, rho: float) -> SystemFactors:
    """Factors of the system of Y [D, N], computed in float64 and returned in y's dtype."""
    xp = array_api_compat.array_namespace(y)
    ones = xp.ones((1, y.shape[1]), dtype=xp.float64, device=array_api_compat.device(y))
    u = xp.concat([math.sqrt(lambda_z) * xp.astype(y, xp.float64), math.sqrt(rho) * ones], axis=0)
    basis, spectrum, f = principal_directions(u)
    return SystemFactors(
        basis=xp.astype(basis, y.dtype),
        f=xp.astype(f, y.dtype),
        spectrum=xp.astype(spectrum, y.dtype)[:, None],
        gain=xp.astype(1.0 / (rho + spectrum), y.dtype)[:, None],
        rho=rho,
        error_threshold=lambda_e / math.sqrt(lambda_z),
    )


class AdmmIteration:
    """One iteration of the solver over a given state X [N, N]; the module's text has the algebra and the names.

    E' [D+1, N], `error`, is updated in place.
    """

    def __init__(self, factors: SystemFactors, state: Array, error: Array) -> None:
        xp = array_api_compat.array_namespace(factors.f)
        self._basis, self._f, self._gain = factors.basis, factors.f, factors.gain
        self._error = error
        self._fz = xp.zeros_like(self._f)
        self._rho, self._theta = factors.rho, 1.0 / factors.rho
        self._error_threshold = factors.error_threshold
        for start, stop in row_blocks(state, state.shape[0]):
            rows = state[start:stop, :]
            self._fz += self._f[:, start:stop] @ (rows - 2.0 * dual_of(rows, start, self._theta))

    def advance(self, state: Array) -> float:
        """Take X to X⁺ in place; returns max row sum |A − C|, the stopping value."""
        xp = array_api_compat.array_namespace(state)
        if bool(xp.any(self._error[:-1, :] != 0.0)):
            projected = self._basis.T @ self._error
        else:  # as it often stays: no token deviates from the others in single features
            projected = self._basis[-1, :, None] * self._error[-1, :]
        g = self._f - projected
        g -= self._fz
        g *= self._gain
        self._update_error(projected, g)

        self._fz[...] = 0.0
        worst = []
        for start, stop in row_blocks(state, state.shape[0]):
            rows = state[start:stop, :]
            columns = self._f[:, start:stop]
            dual = dual_of(rows, start, self._theta)
            new = columns.T @ g
            new += rows
            new -= dual  # C + Fᵀg
            worst.append(replace_state(rows, new, dual, start, self._theta))
            self._fz += columns @ new
        return float(xp.max(xp.stack(worst)))

    def _update_error(self, projected: Array, g: Array) -> None:
        """E'⁺ from PᵀE' [R, N] and g [R, N]; `projected` is overwritten."""
        projected += self._rho * g
        remainder = self._basis @ projected  # U − UA
        features = remainder[:-1, :]
        features -= clip(features, self._error_threshold)
        self._error[:-1, :] = features
        self._error[-1, :] -= remainder[-1, :]


def principal_directions(u: Array) -> tuple[Array, Array, Array]:
    """Principal directions of a matrix u [M, N], from the smaller of its two Gram matrices.

    Returns:
        (P [M, R], s [R], F = Pᵀu [R, N]), R = min(M, N), s ascending: orthonormal columns spanning those of u, and
        FFᵀ = diag(s). For M > N, directions in which u has nothing but rounding (s below 1e-14 of the largest) are
        zero in P and F: a step of the solver moves along them by s/(ρ + s) of what it finds there, so that nothing
        is lost, and what the division by √s magnifies for small s is made small again.
    """
    xp = array_api_compat.array_namespace(u)
    if u.shape[0] <= u.shape[1]:
        spectrum, basis = eigenpairs(u @ u.T)
        return basis, xp.clip(spectrum, min=0.0), basis.T @ u
    spectrum, rotation = eigenpairs(u.T @ u)
    spectrum = xp.where(spectrum > 1e-14 * spectrum[-1], spectrum, 0.0)
    root = xp.sqrt(spectrum)
    inverse = xp.where(root > 0.0, 1.0 / xp.where(root > 0.0, root, 1.0), 0.0)
    return u @ (rotation * inverse), spectrum, root[:, None] * rotation.T


def eigenpairs(gram: Array) -> tuple[Array, Array]:
    """Eigenvalues [M], ascending, and eigenvectors [M, M] of a symmetric matrix [M, M].

    On the host by one thread: half of the work is products of matrix and vector, for which OpenBLAS's threads wait
    spinning for each other. For M = 2048 two took 2.6 s where one took 1.7, and on a busy machine 13 s of processor
    time where one took 2.3.
    """
    if not isinstance(gram, np.ndarray):
        values, vectors = array_api_compat.array_namespace(gram).linalg.eigh(gram)
        return values, vectors
    with threadpool_limits(limits=1, user_api="blas"):
        values, vectors = np.linalg.eigh(gram)
    return values, vectors


def replace_state(rows: Array, new: Array, dual: Array, start: int, theta: float) -> Array:
    """Store X⁺ = `new` in the state's `rows`, and turn `new` into Z = C − T.

    Returns:
        max row sum of |T⁺ − T| = |A − C| over these rows, a scalar array; `dual` (the old T) is overwritten.
    """
    xp = array_api_compat.array_namespace(rows)
    rows[...] = new
    new_dual = dual_of(new, start, theta)
    dual -= new_dual
    residual = xp.max(xp.sum(xp.abs(dual, out=dual), axis=1))
    new_dual *= 2.0
    new -= new_dual
    return residual


def dual_of(rows: Array, start: int, theta: float) -> Array:
    """T of the state's rows start, start + 1, …: X clipped to [−θ, θ], but X itself on the diagonal."""
    dual = clip(rows, theta)
    block_diagonal(dual, start)[...] = block_diagonal(rows, start)
    return dual


def block_diagonal(rows: Array, start: int) -> Array:
    """The diagonal entries of an N × N matrix that lie in its contiguous rows start, start + 1, …: a view."""
    n = rows.shape[1]
    return rows.reshape(-1)[start :: n + 1]


def clip(x: Array, bound: float) -> Array:
    """x clipped to [−bound, bound]; x − clip(x, b) is the soft threshold."""
    # array-api-compat's clip goes through comparisons and masks, an order of magnitude slower.
    return np.clip(x, -bound, bound) if isinstance(x, np.ndarray) else x.clamp(-bound, bound)


def name_of(dtype: Any) -> str:
    """ "float32" or "float64", of a type of NumPy's or PyTorch's."""
    return str(dtype).removeprefix("torch.")


def is_on_host(array: Array) -> bool:
    """Whether an array's memory is the host's."""
    return isinstance(array, np.ndarray) or array.device.type == "cpu"


def row_blocks(array: Array, row_length: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of blocks of an array's rows whose temporaries of `row_length` entries stay near the processor."""
    limit = _HOST_BLOCK_BYTES if is_on_host(array) else _DEVICE_BLOCK_BYTES
    size = max(1, limit // (row_length * array.itemsize))
    for start in range(0, array.shape[0], size):
        yield start, min(start + size, array.shape[0])
