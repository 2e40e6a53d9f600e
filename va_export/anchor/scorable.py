"""Which tokens have a score, and which end of the solver is a result: the one rule that every form of it follows.

NumPy, PyTorch and the compiled solver call the functions here; the ONNX function body (`va_export.ops.subspace`) and
the CUDA kernels (plugins/subspace_score/scorable.h) compute the same from the same numbers. They decide by what the
tokens say and what the residual says, never by whether a sum happens to overflow or to cancel, so that no processor
and no order of a sum answers where another refuses. u is the unit roundoff of the type that is computed in.

*Equal tokens.* They score 0. Equal is what differs from the first token by no more than `EQUAL_ROUNDINGS` · u of the
largest entry: equal images leave a vision tower that far apart, and a score of such tokens would be one of its
rounding. Differences and maxima of given numbers come out alike everywhere.

*Products.* λ_z = α_z / min_i max_{j≠i} |y_iᵀy_j| is as exact as its smallest product, which says nothing where rounding
is all that it is. With ‖y‖ the longest token's length, a token's largest product must be above

- `RANGE_ROUNDINGS` · u ‖y‖²: below, a token is so short that beside the longest one's square the product is lost
  (the system matrix and the remainder U − UA hold sums of both), or so near the mean that PCA leaves rounding of it
  (measured: up to 20 u ‖y‖² in float32 where the mean is ten times as long as what is left of the tokens without it);
- `ANGLE_ROUNDINGS` · √D u ‖y_i‖ ‖y‖: below, it is orthogonal to all others. Roundings of a sum of D products add as
  the root of their number (Higham & Mary, "A new approach to probabilistic rounding error analysis", 2019).

So lengths may differ by 2.6·10⁵ in float32 and 1.4·10¹⁴ in float64. Measured against iterates of 120 digits, entries
of C, which reach 38 there, are then off by at most 1e-4 (float32; the function body's thin form), 3e-3 (its wide form)
and 4e-3 (float64).

*Residual.* Row i of C adds up to what the score is made of, and is off by at most the residual, the largest row sum of
|A − C|. The constraint Aᵀ1 = 1 makes the mean of those sums 1. From a residual of 1/2 on, the interval in which a sum
lies is as wide as their mean, and a token may express itself (which C leaves out) more than all others do: there is
no result, and the solver refuses, unless eps itself is as large. Below, down to eps, an iterate is a rough score, which
comes with a warning.
"""

from __future__ import annotations

import math
from typing import Any

import array_api_compat

from va_export.errors import VaExportError

Array = Any  # numpy.ndarray or torch.Tensor

ROUNDOFF = {"float32": 2.0**-24, "float64": 2.0**-53}
EQUAL_ROUNDINGS = 16.0
RANGE_ROUNDINGS = 64.0
ANGLE_ROUNDINGS = 8.0
LARGEST_RESIDUAL = 0.5
NO_SCORE = -1  # the label of every token where a graph or a kernel, which cannot raise, has no score

_WHERE = "subspace_score"


def are_equal(tokens: Array, dtype: str) -> bool:
    """Whether tokens [N, D], finite, are all equal to the rounding of a type, "float32" or "float64"."""
    xp = array_api_compat.array_namespace(tokens)
    first, largest = tokens[0, :], float(xp.max(xp.abs(tokens)))
    apart = max(float(xp.max(xp.max(tokens, axis=0) - first)), float(xp.max(first - xp.min(tokens, axis=0))))
    return apart <= EQUAL_ROUNDINGS * ROUNDOFF[dtype] * largest


def lone_token(nearest: Array, lengths: Array, dim: int, dtype: str) -> int | None:
    """The first token that no other one can express, if there is any.

    Args:
        nearest: [N], max_{j≠i} |y_iᵀy_j| of each token; lengths: [N], ‖y_i‖.
        dim: D, the number of products in a sum.
        dtype: that they were computed in.
    """
    xp = array_api_compat.array_namespace(nearest)
    longest = float(xp.max(lengths))
    by_range = RANGE_ROUNDINGS * longest
    by_angle = ANGLE_ROUNDINGS * math.sqrt(dim) * lengths
    is_lone = nearest <= ROUNDOFF[dtype] * longest * xp.clip(by_angle, min=by_range)
    return int(xp.argmax(xp.astype(is_lone, xp.int64))) if bool(xp.any(is_lone)) else None


def is_result(residual: float, eps: float) -> bool:
    """Whether a solver that ended with this residual found something, converged or not; not where it is NaN."""
    return residual < max(LARGEST_RESIDUAL, eps)


def no_expression(token: int | None, dtype: str) -> VaExportError:
    """The refusal of a lone token, whose number a kernel does not tell."""
    return VaExportError(
        f"{'a token' if token is None else f'token {token}'} is zero or orthogonal to every other token, to the"
        f" precision of {dtype}: no combination of them expresses it",
        where=_WHERE,
        fix="leave such tokens out before scoring" + ('; dtype="float64" sees more' if dtype == "float32" else ""),
    )


def no_result(iterations: int, residual: float) -> VaExportError:
    """The refusal of a solver that found nothing."""
    return VaExportError(
        f"the self-expression solver stopped after {iterations} iterations with residual {residual:.3g}: from"
        f" {LARGEST_RESIDUAL:g} on, nothing is left of a score",
        where=_WHERE,
        fix="raise max_iter, use settings nearer to the paper's, or leave out tokens that are far longer than others",
    )


def overflowed(iterations: int, dtype: str) -> VaExportError:
    """The refusal of a solver that left the range of its type."""
    return VaExportError(
        f"the self-expression solver overflowed in {dtype} at iteration {iterations}",
        where=_WHERE,
        fix='use settings nearer to the paper\'s, or dtype="float64"',
    )
