"""Sharing score: how much a token takes part in expressing others, weighted by its subspace's size.

arXiv 2509.25151, Subspace-to-Scaler, step 4.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Vector = np.ndarray[Any, np.dtype[np.float64]]

_MIN_MAX_EPS = 1e-5  # the original's; it also keeps a constant score at 0


def sharing_score(row_sum: Vector, labels: np.ndarray[Any, np.dtype[np.int64]]) -> Vector:
    """Score tokens in [0, 1].

    Args:
        row_sum: [N], Σ_j C_ij, the signed total with which token i expresses the others.
        labels: [N], subspace of each token.

    Returns:
        [N]: row_sum × (tokens in the same subspace) / N, min-max normalised with 1e-5 added to the range.
    """
    size = np.bincount(labels)[labels]
    raw = row_sum * size / labels.shape[0]
    return np.asarray((raw - raw.min()) / (raw.max() - raw.min() + _MIN_MAX_EPS))
