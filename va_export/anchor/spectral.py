"""Spectral clustering of a self-expression into subspaces (arXiv 2509.25151, Subspace-to-Scaler, step 3).

Affinity |C| + |C|ᵀ, its symmetric normalised Laplacian, the eigenvectors of its smallest K eigenvalues, and
labels by Yu and Shi's discretisation ("Multiclass spectral clustering", ICCV 2003): what scikit-learn's
`spectral_clustering(assign_labels="discretize")`, which the original implementation calls, does step by step. That
one inverts a dense Laplacian, O(N³); here C stays sparse, as the soft threshold leaves it, and Lanczos iterations
only multiply by it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import eigh
from scipy.sparse import coo_array, csr_array
from scipy.sparse.linalg import ArpackNoConvergence, eigsh

from va_export.errors import VaExportError

Matrix = np.ndarray[Any, np.dtype[np.float64]]
Labels = np.ndarray[Any, np.dtype[np.int64]]

_SEED = 0  # of the eigensolver's start and of the discretisation's first row, drawn in scikit-learn's order
_DENSE_TOKENS = 384  # up to here a dense eigensolver is as fast, and indifferent to close eigenvalues
_LANCZOS_RESTARTS = 300
_MOST_DENSE_TOKENS = 8192  # beyond, a dense eigensolver does not fit a small machine
_MOST_ROTATIONS = 20  # scikit-learn's
_ROWS = 512  # of C at a time, when its entries are counted


def cluster_subspaces(self_expression: np.ndarray[Any, Any], n_subspaces: int) -> Labels:
    """Label tokens by subspace, on the host, in float64, deterministically.

    Args:
        self_expression: C [N, N], N >= n_subspaces.
        n_subspaces: K; fewer labels may occur, for example when there are fewer distinct tokens.

    Returns:
        labels [N], in 0..K-1. Their numbering means nothing. Where C is zero everywhere, all are 0. Where the
        affinity falls apart into several groups that do not touch, the largest eigenvalue repeats, and any basis of
        its eigenvectors is as good: how groups are then split, or merged where they are more than K (frames that
        repeat exactly), is arbitrary, and may differ from scikit-learn's.

    Raises:
        VaExportError: if the eigenvectors or the discretisation cannot be computed.
    """
    n = self_expression.shape[0]
    affinity = affinity_of(self_expression)
    if affinity.nnz == 0:
        return np.zeros(n, dtype=np.int64)
    try:
        random = np.random.RandomState(_SEED)
        start = random.uniform(-1.0, 1.0, n)
        return discretise(spectral_embedding(affinity, n_subspaces, start), first_row=random.randint(n))
    except (np.linalg.LinAlgError, ArpackNoConvergence) as error:
        raise VaExportError(
            f"{n} tokens could not be clustered into {n_subspaces} subspaces: {error}",
            where="subspace_score",
            fix="use fewer subspaces, or leave duplicate tokens out",
        ) from error


def affinity_of(self_expression: np.ndarray[Any, Any]) -> csr_array:
    """|C| + |C|ᵀ [N, N], sparse, float64; nothing dense of that size is made."""
    n = self_expression.shape[0]
    rows, columns, values = [], [], []
    for start in range(0, n, _ROWS):
        block = self_expression[start : start + _ROWS]
        row, column = np.nonzero(block)
        values.append(np.abs(block[row, column]).astype(np.float64))
        rows.append((row + start).astype(np.int32))
        columns.append(column.astype(np.int32))
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    size = coo_array(entries, shape=(n, n)).tocsr()
    return csr_array(size + size.T)


def spectral_embedding(affinity: csr_array, n_subspaces: int, start: Matrix) -> Matrix:
    """D^-½ times the eigenvectors of D^-½ A D^-½ with the K largest eigenvalues, largest first: [N, K].

    `start` [N] is where the iteration for them starts.
    """
    n = affinity.shape[0]
    degree = np.sqrt(affinity.sum(axis=1))
    degree[degree == 0.0] = 1.0  # a token that expresses none and that none expresses
    normalised = affinity.copy()
    normalised.data /= degree[np.repeat(np.arange(n), np.diff(affinity.indptr))] * degree[affinity.indices]
    return np.asarray(_leading_eigenvectors(normalised, n_subspaces, start) / degree[:, None])


def _leading_eigenvectors(matrix: csr_array, count: int, start: Matrix) -> Matrix:
    n = matrix.shape[0]
    if n > max(_DENSE_TOKENS, 3 * count):
        subspace = min(n, max(3 * count, count + 40))
        try:
            eigenvalues, vectors = eigsh(matrix, count, which="LA", v0=start, ncv=subspace, maxiter=_LANCZOS_RESTARTS)
            return np.asarray(vectors[:, np.argsort(-eigenvalues, kind="stable")])
        except ArpackNoConvergence:
            if n > _MOST_DENSE_TOKENS:
                raise
    vectors = eigh(matrix.toarray(), subset_by_index=[n - count, n - 1], driver="evr", check_finite=False)[1]
    return np.asarray(vectors[:, ::-1])


def discretise(embedding: Matrix, first_row: int) -> Labels:
    """Yu and Shi's labels [N] of an embedding [N, K]: the rotation of its directions that is nearest to indicators.

    `first_row` is the token whose direction starts the search.

    The start, signs, order of operations and stopping rule are scikit-learn's, for the same labels.

    Raises:
        numpy.linalg.LinAlgError: if the embedding is not finite.
    """
    n, k = embedding.shape
    vectors = embedding * (np.sqrt(n) / np.linalg.norm(embedding, axis=0))
    vectors *= np.where(vectors[0] > 0, -1.0, 1.0)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors /= np.where(length == 0.0, 1.0, length)

    rotation = np.zeros((k, k))
    rotation[:, 0] = vectors[first_row]
    likeness = np.zeros(n)
    for column in range(1, k):  # the row that is most nearly orthogonal to those before
        likeness += np.abs(vectors @ rotation[:, column - 1])
        rotation[:, column] = vectors[likeness.argmin()]

    last_cut = 0.0
    for _ in range(_MOST_ROTATIONS + 1):
        labels = (vectors @ rotation).argmax(axis=1)
        overlap = np.zeros((k, k))
        np.add.at(overlap, labels, vectors)
        left, agreement, right = np.linalg.svd(overlap)
        cut = 2.0 * (n - agreement.sum())
        if abs(cut - last_cut) < np.finfo(np.float64).eps:
            break
        last_cut = cut
        rotation = right.T @ left.T
    return np.asarray(labels, dtype=np.int64)
