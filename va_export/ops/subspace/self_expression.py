"""Sparse self-expression by ADMM in standard operators: the iterates of `va_export.anchor.self_expression`.

With U = [√λ_z Y; √ρ 1ᵀ] [M, N], M = D + 1, and E', Z = C − T and the steps for E and δ₁ as in that module, the A-step
is A = Z + UᵀS(U − E' − UZ) with S = (UUᵀ + ρI)⁻¹. S itself is never made: in float32 it would lose UUᵀ's condition
number. Two orthonormal factors take its place, both the polar factor of a stacked matrix, by products alone.

Fewer features than tokens. [U, √ρ I] has the factor [V, √ρ H⁻¹] with V = H⁻¹U, H = S^-½, and

    h = V − H⁻¹E' − VZ      A = Z + Vᵀh      R = U − UA = E' + ρ H⁻¹h,       2MN² + 2M²N multiplications.

More features than tokens. [U; √ρ I] has the factor [Q; √ρ K⁻¹] with Q = UK⁻¹, K = (UᵀU + ρI)^½, and

    A = Z + QᵀQ(I − Z) − K⁻¹QᵀE'      R = U − UA,       N³ + 2MN² multiplications: fewer for N < √2 M.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from va_export.anchor.scorable import ANGLE_ROUNDINGS, LARGEST_RESIDUAL, RANGE_ROUNDINGS, ROUNDOFF
from va_export.ops.subspace.polar import identity, on_diagonal, polar_factor
from va_export.ops.subspace.tape import Tape, Value

# (Z [N, N], E' [M, N]) → (A − Z, R)
Advance = Callable[[Value, Value], tuple[Value, Value]]


@dataclass(frozen=True)
class AdmmAttributes:
    """The op's attributes that the solver reads, as scalars."""

    rho: Value
    alpha_e: Value
    alpha_z: Value
    eps: Value
    max_iter: Value


def self_expression(tape: Tape, tokens: Value, options: AdmmAttributes, *, is_wide: bool) -> tuple[Value, Value]:
    """C [N, N] of tokens [N, D], and whether it is a result (`va_export.anchor.scorable`): where not, C means nothing.

    Args:
        is_wide: compute as for more features than tokens; right for any.
    """
    lambda_e, lambda_z, has_weights = _penalty_weights(tape, tokens, options)
    ones = tape.op("Expand", options.rho.sqrt(), tape.op("Concat", tokens.size_vector(0), [1], axis=0))
    u_t = tape.op("Concat", tokens * lambda_z.sqrt(), ones, axis=1)  # Uᵀ [N, M]
    advance = (_advance_by_tokens if is_wide else _advance_by_features)(tape, u_t, options.rho)
    theta, threshold = 1.0 / options.rho, lambda_e / lambda_z.sqrt()
    diagonal = on_diagonal(tape, tokens.size(0))
    m = u_t.size(1)
    is_affine_row = tape.op("Range", 0, m, 1).column().equals(m - 1)

    def step(_: Value, c: Value, t: Value, error: Value, __: Value) -> tuple[Value, ...]:
        moved, remainder = advance(c - t, error)
        x = c + moved
        next_t = tape.op("Where", diagonal, x, _clip(tape, x, theta))
        residual = (next_t - t).abs().sum(1).max()
        features = remainder - _clip(tape, remainder, threshold)
        next_error = tape.op("Where", is_affine_row, error - remainder, features)
        return tape.op("Not", residual < options.eps), x - next_t, next_t, next_error, residual

    square = tape.op("Concat", tokens.size_vector(0), tokens.size_vector(0), axis=0)
    zeros = tape.op("Expand", 0.0, square)
    no_error = tape.op("Expand", 0.0, tape.op("Shape", u_t.T))
    c, _, _, residual = tape.loop(options.max_iter, [zeros, zeros, no_error, 0.0], step)
    is_result = residual < tape.op("Max", options.eps, LARGEST_RESIDUAL)  # not where it is NaN
    return c, has_weights & is_result


def _advance_by_features(tape: Tape, u_t: Value, rho: Value) -> Advance:
    stacked = tape.op("Concat", u_t, identity(tape, u_t.size(1)) * rho.sqrt(), axis=0)
    v_t, root = _split(tape, polar_factor(tape, stacked), u_t.size_vector(0))
    v, inverse_root = v_t.T, root / rho.sqrt()

    def advance(z: Value, error: Value) -> tuple[Value, Value]:
        h = v - inverse_root @ error - v @ z
        return v_t @ h, error + rho * (inverse_root @ h)

    return advance


def _advance_by_tokens(tape: Tape, u_t: Value, rho: Value) -> Advance:
    u = u_t.T
    stacked = tape.op("Concat", u, identity(tape, u_t.size(0)) * rho.sqrt(), axis=0)
    q, root = _split(tape, polar_factor(tape, stacked), u_t.size_vector(1))
    projector, from_error = q.T @ q, root @ q.T / rho.sqrt()

    def advance(z: Value, error: Value) -> tuple[Value, Value]:
        moved = projector - projector @ z - from_error @ error
        return moved, u - u @ (z + moved)

    return advance


def _split(tape: Tape, rows: Value, at: Value) -> tuple[Value, Value]:
    upper = tape.op("Slice", rows, [0], at, [0])
    return upper, tape.op("Slice", rows, at, tape.op("Shape", rows, start=0, end=1), [0])


def _penalty_weights(tape: Tape, tokens: Value, options: AdmmAttributes) -> tuple[Value, Value, Value]:
    """λ_e, λ_z, and whether they are the paper's: not where a token is zero or orthogonal to all others."""
    norms = tape.op("Concat", tokens.abs().sum(1), tape.op("Expand", 0.0, [1]), axis=0)  # at least two, for TopK
    largest = tape.ops("TopK", 2, norms, [2], axis=0)[0]
    mu_e = tape.op("Squeeze", tape.op("Slice", largest, [1], [2], [0]), [0])
    products = tape.op("Where", on_diagonal(tape, tokens.size(0)), 0.0, (tokens @ tokens.T).abs())
    nearest = products.max(1)
    mu_z = nearest.min()
    is_usable = _can_be_expressed(tape, tokens, nearest)
    lambda_e = options.alpha_e / tape.op("Where", is_usable, mu_e, 1.0)
    lambda_z = options.alpha_z / tape.op("Where", is_usable, mu_z, 1.0)
    return lambda_e, lambda_z, is_usable


def _can_be_expressed(tape: Tape, tokens: Value, nearest: Value) -> Value:
    """Whether no token is alone, by `va_export.anchor.scorable.lone_token`."""
    lengths = (tokens * tokens).sum(1).sqrt()
    longest = lengths.max()
    by_angle = ANGLE_ROUNDINGS * tokens.size(1).to_float().sqrt() * lengths
    bound = ROUNDOFF["float32"] * longest * tape.op("Max", by_angle, RANGE_ROUNDINGS * longest)
    return (nearest > bound).to_float().min() > 0.0


def _clip(tape: Tape, x: Value, bound: Value) -> Value:
    return tape.op("Max", tape.op("Min", x, bound), -bound)
