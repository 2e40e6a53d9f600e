"""Spectral clustering of a self-expression into subspaces (arXiv 2509.25151, Subspace-to-Scaler, step 3).

Affinity |C| + |C|ᵀ, its symmetric normalised Laplacian, the eigenvectors of its smallest K eigenvalues, and
labels by Yu and Shi's discretisation ("Multiclass spectral clustering", ICCV 2003). scikit-learn's
`spectral_clustering` does all of that, and gives the original implementation's labels.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.cluster import spectral_clustering

from va_export.errors import VaExportError

_SEED = 0  # of the eigensolver's start vector and of the discretisation's first row


def cluster_subspaces(self_expression: np.ndarray[Any, Any], n_subspaces: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Label tokens by subspace, on the host, in float64, deterministically.

    Args:
        self_expression: C [N, N], N >= n_subspaces.
        n_subspaces: K; fewer labels may occur, for example when there are fewer distinct tokens.

    Returns:
        labels [N], in 0..K-1. Their numbering means nothing. Where C is zero everywhere, all are 0. Where the
        affinity falls apart into more than K groups (frames that repeat exactly), which groups are merged is
        arbitrary.

    Raises:
        VaExportError: if the discretisation fails.
    """
    affinity = np.abs(self_expression.astype(np.float64))
    affinity += affinity.T
    if not affinity.any():
        return np.zeros(affinity.shape[0], dtype=np.int64)
    with warnings.catch_warnings():
        # "Graph is not fully connected" is the best case here: subspaces that do not touch.
        warnings.filterwarnings("ignore", message="Graph is not fully connected", category=UserWarning)
        warnings.filterwarnings("ignore", message="k >= N", category=RuntimeWarning)  # a dense solver takes over
        try:
            labels = spectral_clustering(
                affinity, n_clusters=n_subspaces, assign_labels="discretize", random_state=_SEED
            )
        except np.linalg.LinAlgError as error:
            raise VaExportError(
                f"{affinity.shape[0]} tokens could not be clustered into {n_subspaces} subspaces: {error}",
                where="subspace_score",
                fix="use fewer subspaces, or leave duplicate tokens out",
            ) from error
    return np.asarray(labels, dtype=np.int64)
