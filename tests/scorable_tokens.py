"""Tokens, and whether they have a score: every form of the solver must say the same of them, on every processor."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float32]]

SCORED, EQUAL, REFUSED = "scored", "equal", "refused"


def _tokens(n: int = 24, dim: int = 6, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def _with_length(factor: float, tokens: Array) -> Array:
    """The first token, of length about 1 like the others, made longer or shorter."""
    return np.concatenate([tokens[:1] * np.float32(factor), tokens[1:]])


_BASIS = np.linalg.qr(np.random.default_rng(3).standard_normal((24, 24)))[0].astype(np.float32)
_POINT = np.array([3.5, -1.25, 700.0, 1e-3], np.float32)  # of which most are far below the largest

# What float32 says; it tells lengths apart up to 2.6e5. float64, up to 1.4e14, goes on with what is marked, and finds
# that a token a million times as long as the others needs a coefficient of a million, which grows by 1/300 an
# iteration: 1e4 of them leave a residual of 1.
TOKENS: dict[str, tuple[Array, str]] = {
    "plain": (_tokens(), SCORED),
    "one short": (_with_length(1e-4, _tokens()), SCORED),
    "one too short": (_with_length(1e-7, _tokens()), REFUSED),  # float64: scored
    "one zero": (_with_length(0.0, _tokens()), REFUSED),
    "one far too long": (_with_length(1e6, _tokens()), REFUSED),  # float64: a residual of 1
    "lengths of all sizes": (_tokens() * np.geomspace(1e-18, 1e18, 24, dtype=np.float32)[:, None], REFUSED),
    "axes": (np.eye(24, dtype=np.float32), REFUSED),
    "turned axes": (_BASIS, REFUSED),  # whose products are rounding alone; float64: a residual of 1
    "equal": (np.tile(_POINT, (24, 1)), EQUAL),
    "equal to rounding": (np.tile(_POINT, (24, 1)) * (1 + 2.0**-23 * (_tokens(24, 4) > 0)).astype(np.float32), EQUAL),
    "unequal by more": (np.tile(_POINT, (24, 1)) * (1 + 2.0**-12 * (_tokens(24, 4) > 0)).astype(np.float32), SCORED),
}
