"""Where a run of the self-expression solver ended, and how a later run starts from there.

Notation of `self_expression.py`. A state is X = A + T and E' at a penalty ρ. Two uses:

*The same tokens and settings*, with a smaller eps or a larger max_iter: the run goes on where the other stopped, as if
it never had.

*The tokens of a longer clip*, whose first tokens are those of the state. The optimum does not depend on ρ, but the
paper's answer is not the optimum: entries of C travel to it by at most about 1/ρ an iteration, and ρ = 300, eps = 2e-4
stop them on the way. So no other start can give the paper's iterates, and a start from the shorter clip's C, in which
tokens that are new now are missing, has the longer way to go: at the paper's ρ it needs more iterations than zeros
for the same distance to the optimum. What a state permits is another aim, the optimum itself. Such a run takes steps
`_STRIDE` times as long, ρ/_STRIDE, and stops at _STRIDE^1.5 eps: between _STRIDE eps, where the multipliers Δ₂ change
as little in an iteration, and _STRIDE² eps, where C moves as slowly. Most of what it saves comes from the step: zeros
with the same step and stop took 0.9 to 1.7 times the iterations on such clips, and ended a little nearer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import array_api_compat

from va_export.errors import VaExportError

Array = Any  # numpy.ndarray or torch.Tensor

_STRIDE = 10.0
_SAME = 1e-6  # of λ, which a float32 run repeats to rounding


@dataclass(frozen=True)
class SolverState:
    """The solver's variables after an iteration.

    Attributes:
        x: X [N, N], column j of token j.
        error: E' [D+1, N].
        rho: ρ of that run; lambda_e, lambda_z: its weights.
    """

    x: Array
    error: Array
    rho: float
    lambda_e: float
    lambda_z: float


@dataclass(frozen=True)
class Start:
    """How a run begins: X [N, N] and E' [D+1, N], its own to change, None for zeros; ρ, and the factor on eps."""

    x: Array | None
    error: Array | None
    rho: float
    eps_factor: float


def start_of_run(tokens: Array, rho: float, lambdas: tuple[float, float], state: SolverState | None) -> Start:
    """The start for tokens [N, D] with weights (λ_e, λ_z): zeros, or from a state.

    Raises:
        VaExportError: the state has more tokens, or other arrays.
    """
    xp, device = array_api_compat.array_namespace(tokens), array_api_compat.device(tokens)
    n, dim = tokens.shape
    if state is None:
        return Start(None, None, rho, 1.0)
    if type(state.x) is not type(tokens) or array_api_compat.device(state.x) != device:
        raise VaExportError(
            "warm_start holds arrays of another kind or device than the tokens",
            where="subspace_score",
            fix="keep to NumPy or to PyTorch, and to one device",
        )
    if state.x.shape[0] > n:
        raise VaExportError(
            f"warm_start has {state.x.shape[0]} tokens, more than the {n} given",
            where="subspace_score",
            fix="pass the tokens of a clip that grew, the earlier ones first, or leave warm_start out",
        )
    is_same = (
        tuple(state.error.shape) == (dim + 1, n)
        and state.rho == rho
        and all(
            math.isclose(old, new, rel_tol=_SAME)
            for old, new in zip((state.lambda_e, state.lambda_z), lambdas, strict=True)
        )
    )
    if is_same:
        x, error = (xp.astype(array, tokens.dtype, copy=True) for array in (state.x, state.error))
        return Start(x, error, rho, 1.0)
    return _start_of_longer_clip(tokens, rho / _STRIDE, state)


def _start_of_longer_clip(tokens: Array, rho: float, state: SolverState) -> Start:
    """A new token starts with the column of the old token that is nearest to it, and as part of no other's.

    E' keeps its last row alone, δ₁/√ρ: its features may be other ones now (PCA), and one iteration finds them again.
    """
    xp, device = array_api_compat.array_namespace(tokens), array_api_compat.device(tokens)
    n, old = tokens.shape[0], state.x.shape[0]
    x = xp.zeros((n, n), dtype=tokens.dtype, device=device)
    error = xp.zeros((tokens.shape[1] + 1, n), dtype=tokens.dtype, device=device)
    # X = C + T, with T = Δ₂/ρ and Δ₂ in [-1, 1] but on the diagonal: C and Δ₂ stay, T grows with 1/ρ.
    given = xp.astype(state.x, tokens.dtype)
    block = x[:old, :old]
    block[...] = xp.clip(given, -1.0 / state.rho, 1.0 / state.rho)
    block *= state.rho / rho - 1.0
    block += given
    diagonal = xp.arange(old, device=device)
    block[diagonal, diagonal] = given[diagonal, diagonal] * (state.rho / rho)

    nearest = _nearest_tokens(tokens[:old, :], tokens[old:, :])
    new = xp.arange(old, n, device=device)
    x[:old, old:] = block[:, nearest]
    # The nearest token did not express itself, which left its multiplier unbounded.
    x[nearest, new] = xp.clip(x[nearest, new], -1.0 / rho, 1.0 / rho)
    delta = xp.astype(state.error[-1, :], tokens.dtype) * math.sqrt(state.rho / rho)
    error[-1, :old] = delta
    error[-1, old:] = delta[nearest]
    return Start(x, error, rho, _STRIDE**1.5)


def _nearest_tokens(old: Array, new: Array) -> Array:
    """For each row of `new` [M, D] the number of the nearest row of `old` [N, D]: [M]."""
    xp = array_api_compat.array_namespace(old)
    squares = xp.sum(old * old, axis=1)
    return xp.argmin(squares[None, :] - 2.0 * (new @ old.T), axis=1)
