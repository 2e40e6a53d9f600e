"""How far a number of AnchoredAttention may lie from its value in float64, whoever checks it."""

from __future__ import annotations

# float32: a logit sums up to 256 products and exp hands its relative error on, a row sums up to 64 partial results:
# 2^-24 · 320. 16 bits: half a unit in the last place of the result, and where tensor cores take the weights in 16 bits
# another of theirs.
FLOAT32_SUMS = 2.0**-24 * 320
ROUNDOFF = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}
SMALLEST = 6e-8  # float16 rounds what is tiny to multiples of 2^-24


def tolerance(dtype: str, *, rounds_weights: bool) -> float:
    """Of an output number, relative to the sum of its absolute terms."""
    return FLOAT32_SUMS + (2 if rounds_weights else 1) * ROUNDOFF[dtype]
