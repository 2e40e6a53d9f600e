"""Leading eigenvectors of a symmetric operator in standard operators.

Subspace iteration with a Chebyshev filter ("Self-consistent-field calculations using Chebyshev-filtered subspace
iteration", Y. Zhou et al., 2006): a polynomial of the operator that is small on the unwanted part of the spectrum is
applied to a block of vectors, which are then made orthonormal and turned to Ritz vectors, until they are eigenvectors.
The small dense eigenproblem is solved by Jacobi rotations, half as many at a time as there are vectors ("The solution
of singular-value and symmetric eigenvalue problems on multiprocessor arrays", R. Brent and F. Luk, 1985).
"""

from __future__ import annotations

from collections.abc import Callable

from va_export.ops.subspace.polar import identity, polar_factor
from va_export.ops.subspace.tape import Tape, Value

_MOST_FILTERS = 40
_MOST_DEGREE = 30
# A filter magnifies the largest eigenvalue's direction by so much and no more: what of it is left in the other vectors
# must not drown them in float32.
_MOST_GROWTH = 1e3
_MARGIN = 0.05
_MOST_SWEEPS = 6  # of as many rounds as there are vectors, less one
_OFF_DIAGONAL = 3e-7  # of the largest eigenvalue: what float32 products leave of a diagonal matrix
_RESIDUAL = 3e-6  # of an eigenvector's own eigenvalue, but no less than float32 leaves beside the largest:
_LEAST_RESIDUAL = 5e-7


def block_size(count: Value, more: int) -> Value:
    """An even number of vectors: `count`, and `more` to part them from the rest."""
    return (count + (more + 1)) / 2 * 2


def leading_eigenvectors(
    tape: Tape,
    apply: Callable[[Value], Value],
    length: Value,
    count: Value,
    block: Value,
    lowest: Value | float,
    highest: Value | float,
) -> tuple[Value, Value]:
    """The largest eigenvalues, descending, and their vectors.

    Args:
        apply: the operator: vectors [length, block] → the same.
        length: at least `block`.
        count: eigenvectors that are wanted.
        block: vectors to work with, even and at least 4; see `block_size`.
        lowest, highest: bounds of the spectrum.

    Returns:
        ([block], [length, block]); the first `count` are eigenvectors to a residual of 3e-6 of their eigenvalue (but
        5e-7 of the largest), the others are nearly so. Vectors of one repeated eigenvalue are one basis of many.
    """
    start = _start(tape, length, block)
    index = tape.op("Range", 0, block, 1)
    guess = tape.op("Where", index.equals(0), highest, 0.5 * (tape.value(lowest) + tape.value(highest)))
    is_wanted = (index < count).to_float()

    def step(trip: Value, vectors: Value, image: Value, ritz: Value) -> tuple[Value, ...]:
        filtered = _filter(tape, apply, vectors, image, ritz, lowest, 2 * trip + 2)
        length_of = (filtered * filtered).sum(0).sqrt()
        basis = polar_factor(tape, filtered / tape.op("Max", length_of, 1e-30))
        moved = apply(basis)
        values, turn = small_eigenvectors(tape, basis.T @ moved, block)
        vectors, image = basis @ turn, moved @ turn
        remainder = image - vectors * values
        allowed = tape.op("Max", _RESIDUAL * values.abs(), _LEAST_RESIDUAL * values.max())
        excess = ((remainder * remainder).sum(0).sqrt() - allowed) * is_wanted
        return excess.max() > 0.0, vectors, image, values

    vectors, _, values = tape.loop(_MOST_FILTERS, [start, apply(start), guess], step)
    return values, vectors


def _filter(
    tape: Tape,
    apply: Callable[[Value], Value],
    vectors: Value,
    image: Value,
    ritz: Value,
    lowest: Value | float,
    most_degree: Value,
) -> Value:
    """Chebyshev's polynomial that is within ±1 from the lowest eigenvalue to the block's last, applied to the block."""
    top, last = ritz.max(), ritz.min()
    width = top - lowest
    # Below the block's last value by a little, so that even where that is repeated it is raised above what it hides.
    cut = tape.op("Max", last - _MARGIN * (last - lowest), lowest + 1e-5 * width)
    stretch = 2.0 / tape.op("Max", cut - lowest, 1e-30)
    shift = (cut + lowest) / tape.op("Max", cut - lowest, 1e-30)
    at_top = stretch * top - shift

    def step(trip: Value, before: Value, current: Value, growth_before: Value, growth: Value) -> tuple[Value, ...]:
        following = 2.0 * (stretch * apply(current) - shift * current) - before
        next_growth = 2.0 * at_top * growth - growth_before
        goes_on = (next_growth < _MOST_GROWTH) & (trip + 2 < most_degree)
        return goes_on, current, following, growth, next_growth

    first = stretch * image - shift * vectors
    return tape.loop(_MOST_DEGREE, [vectors, first, 1.0, at_top], step)[1]


def small_eigenvectors(tape: Tape, matrix: Value, size: Value) -> tuple[Value, Value]:
    """Eigenvalues [size], descending, and eigenvectors [size, size] of a small symmetric matrix of even size ≥ 4.

    Neighbours (0, 1), (2, 3), … are rotated against each other at once, and change places after every round as the
    players of a tournament do, so that each meets each.
    """
    index = tape.op("Range", 0, size, 1)
    parity = index - index / 2 * 2
    is_even = parity.equals(0)
    partner = tape.op("Where", is_even, index + 1, index - 1)
    moved = tape.op("Where", is_even, index - 2, index + 2)  # along the upper row, and back along the lower
    moved = tape.op("Where", index.equals(2), 1, moved)
    moved = tape.op("Where", index.equals(size - 1), size - 2, moved)
    places = tape.op("Where", index.equals(0), 0, moved)
    eye = identity(tape, size)
    pairs = index.column().equals(partner.row()).to_float()
    sign_of_tie = 1.0 - 2.0 * parity.to_float()

    def step(_: Value, h: Value, q: Value) -> tuple[Value, ...]:
        own = (h * eye).sum(1)
        other = tape.op("Gather", own, partner, axis=0)
        both = (h * pairs).sum(1)
        gap = other - own
        sign = tape.op("Where", gap.equals(0.0), sign_of_tie, tape.op("Sign", gap))
        tangent = 2.0 * sign * both / (gap.abs() + (gap * gap + 4.0 * both * both).sqrt() + 1e-30)
        cosine = 1.0 / (1.0 + tangent * tangent).sqrt()
        rotation = eye * cosine.column() + pairs * (tangent * cosine).column()
        rotation = tape.op("Gather", rotation, places, axis=1)
        h = rotation.T @ h @ rotation
        h = 0.5 * (h + h.T)  # to the last bit: what the two of a pair see must be the same rotation
        off = (h * (1.0 - eye)).abs().max()
        return off > _OFF_DIAGONAL * (h * eye).abs().max(), h, q @ rotation

    h, q = tape.loop(size * _MOST_SWEEPS, [0.5 * (matrix + matrix.T), eye], step)
    values, order = tape.ops("TopK", 2, (h * eye).sum(1), tape.op("Unsqueeze", size, [0]), axis=0)
    return values, tape.op("Gather", q, order, axis=1)


def _start(tape: Tape, length: Value, block: Value) -> Value:
    """Fixed numbers in [−½, ½) without a pattern that tokens could have: a polynomial in row and column modulo a prime,
    exact in float32.
    """
    prime = 2039.0
    row = tape.op("Range", 0, length, 1).to_float().column()
    column = tape.op("Range", 0, block, 1).to_float().row()

    def modulo(x: Value) -> Value:
        return x - prime * tape.op("Floor", x / prime)

    i = modulo(row)
    mixed = modulo(modulo(i * i) * (column + 3.0) + modulo(i * 17.0 + 29.0) * (column * 5.0 + 1.0) + row)
    return modulo(mixed * mixed + column) / prime - 0.5
