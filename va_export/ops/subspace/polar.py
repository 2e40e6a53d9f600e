"""The orthonormal polar factor by Newton and Schulz's iteration: products alone, no factorisation and no division."""

from __future__ import annotations

from va_export.ops.subspace.tape import Tape, Value

# Every step multiplies the smallest singular value by 1.5 until it is near 1: so many bring 1e-9 there.
_MOST_STEPS = 64
# The error is squared by the step that follows the test: 1e-3 before it is below a float32 rounding after it.
_NEAR = 1e-3


def polar_factor(tape: Tape, matrix: Value) -> Value:
    """U of matrix = U H for a matrix [n, m] with n ≥ m: orthonormal columns that span the matrix's, and nearest to it.

    X ← X (3 I − XᵀX)/2 from a matrix of norm at most 1 ("Functions of Matrices", N. J. Higham, section 8.3). XᵀX is
    formed anew in every step, so that the result is orthonormal to rounding whatever errors the way had. Directions
    that are zero in the matrix stay zero.
    """
    eye = identity(tape, matrix.size(1))
    bound = (matrix.T @ matrix).abs().sum(1).max()  # on the square of the norm
    scaled = matrix / tape.op("Max", bound, 1e-30).sqrt()

    def step(_: Value, x: Value) -> tuple[Value, ...]:
        gram = x.T @ x
        is_far = (gram - eye).abs().sum(1).max() > _NEAR
        return is_far, 1.5 * x - 0.5 * (x @ gram)

    return tape.loop(_MOST_STEPS, [scaled], step)[0]


def identity(tape: Tape, size: Value) -> Value:
    """The unit matrix [size, size], float32."""
    return on_diagonal(tape, size).to_float()


def on_diagonal(tape: Tape, size: Value) -> Value:
    """[size, size], true on the diagonal."""
    index = tape.op("Range", 0, size, 1)
    return index.column().equals(index.row())
