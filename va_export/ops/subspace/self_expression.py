"""Sparse self-expression by ADMM in standard operators: the iterates of `va_export.anchor.self_expression`.

With U = [√λ_z Y; √ρ 1ᵀ] [M, N], M = D + 1, and H = (UUᵀ + ρI)^½, the polar factor of [U, √ρ I] is H⁻¹[U, √ρ I]. Its
first part V = H⁻¹U and H⁻¹ from its second are all that an iteration needs, and both come out of products that are
accurate in float32 (an explicit inverse of UUᵀ + ρI would lose its condition number):

    h = V − H⁻¹E' − VZ      X⁺ = C + Vᵀh      R = U − UA = E' + ρ H⁻¹h

with E', Z = C − T and the steps for E and δ₁ as in that module. Four products an iteration, 2MN² + 2M²N
multiplications, for every N and D: for D > N a form in an N-sized basis takes between a half and a quarter less, and
would need a branch on a shape that is dynamic here.
"""

from __future__ import annotations

from dataclasses import dataclass

from va_export.ops.subspace.polar import identity, on_diagonal, polar_factor
from va_export.ops.subspace.tape import Tape, Value


@dataclass(frozen=True)
class AdmmAttributes:
    """The op's attributes that the solver reads, as scalars."""

    rho: Value
    alpha_e: Value
    alpha_z: Value
    eps: Value
    max_iter: Value


def self_expression(tape: Tape, tokens: Value, options: AdmmAttributes) -> tuple[Value, Value]:
    """(C [N, N], whether λ_e and λ_z are finite) of tokens [N, D]. Where they are not, C means nothing."""
    lambda_e, lambda_z, is_finite = _penalty_weights(tape, tokens, options)
    n = tokens.size(0)
    ones = tape.op("Expand", options.rho.sqrt(), tape.op("Concat", tokens.size_vector(0), [1], axis=0))
    u_t = tape.op("Concat", tokens * lambda_z.sqrt(), ones, axis=1)  # Uᵀ [N, M]
    m = u_t.size(1)
    polar = polar_factor(tape, tape.op("Concat", u_t, identity(tape, m) * options.rho.sqrt(), axis=0))
    v_t = tape.op("Slice", polar, [0], tokens.size_vector(0), [0])
    inverse_root = tape.op("Slice", polar, tokens.size_vector(0), [1 << 40], [0]) / options.rho.sqrt()  # H⁻¹
    v = v_t.T
    theta = 1.0 / options.rho
    threshold = lambda_e / lambda_z.sqrt()
    diagonal = on_diagonal(tape, n)
    is_affine_row = tape.op("Range", 0, m, 1).column().equals(m - 1)

    def step(_: Value, c: Value, t: Value, error: Value) -> tuple[Value, ...]:
        h = v - inverse_root @ error - v @ (c - t)
        x = c + v_t @ h
        next_t = tape.op("Where", diagonal, x, _clip(tape, x, theta))
        residual = (next_t - t).abs().sum(1).max()
        correction = options.rho * (inverse_root @ h)
        remainder = error + correction
        features = remainder - _clip(tape, remainder, threshold)
        next_error = tape.op("Where", is_affine_row, -correction, features)
        goes_on = tape.op("Not", residual < options.eps)  # a residual that is no number ends below, finite, at max_iter
        return goes_on, x - next_t, next_t, next_error

    square = tape.op("Concat", tokens.size_vector(0), tokens.size_vector(0), axis=0)
    zeros = tape.op("Expand", 0.0, square)
    c, _, _ = tape.loop(options.max_iter, [zeros, zeros, tape.op("Expand", 0.0, tape.op("Shape", v))], step)
    return c, is_finite


def _penalty_weights(tape: Tape, tokens: Value, options: AdmmAttributes) -> tuple[Value, Value, Value]:
    """λ_e and λ_z; 1 and False where a token is zero or orthogonal to all others, for which the paper's are infinite."""
    norms = tape.op("Concat", tokens.abs().sum(1), tape.op("Expand", 0.0, [1]), axis=0)  # at least two, for TopK
    largest = tape.op("TopK", norms, [2], axis=0) if False else tape.ops("TopK", 2, norms, [2], axis=0)[0]
    mu_e = tape.op("Squeeze", tape.op("Slice", largest, [1], [2], [0]), [0])
    products = tape.op("Where", on_diagonal(tape, tokens.size(0)), 0.0, (tokens @ tokens.T).abs())
    mu_z = products.max(1).min()
    is_finite = (mu_e > 0.0) & (mu_z > 0.0)
    lambda_e = options.alpha_e / tape.op("Where", is_finite, mu_e, 1.0)
    lambda_z = options.alpha_z / tape.op("Where", is_finite, mu_z, 1.0)
    return lambda_e, lambda_z, is_finite


def _clip(tape: Tape, x: Value, bound: Value) -> Value:
    return tape.op("Max", tape.op("Min", x, bound), -bound)
