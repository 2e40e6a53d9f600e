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
from scipy.sparse import csr_array
from scipy.sparse.linalg import ArpackNoConvergence, eigsh

from va_export.anchor.affinity import DenseAffinity, Matrix, normalised_affinity
from va_export.errors import VaExportError

Labels = np.ndarray[Any, np.dtype[np.int64]]

_SEED = 0  # of the eigensolver's start and of the discretisation's first row, drawn in scikit-learn's order
_DENSE_TOKENS = 384  # up to here a dense eigensolver is as fast, and indifferent to close eigenvalues
_LANCZOS_RESTARTS = 300
_MOST_DENSE_TOKENS = 8192  # beyond, a dense eigensolver does not fit a small machine
_MOST_ROTATIONS = 20  # scikit-learn's
_MOST_SUBSPACES = 64  # that an eigengap is looked for: beyond, Lanczos costs more than the solver before it
_SMALLEST_GAP = 1e-6  # far above the rounding of eigenvalues, which lie in [-1, 1]


def cluster_subspaces(self_expression: np.ndarray[Any, Any], n_subspaces: int | None) -> Labels:
    """Label tokens by subspace, on the host, in float64, deterministically.

    Args:
        self_expression: C [N, N], N >= n_subspaces.
        n_subspaces: K; fewer labels may occur, for example when there are fewer distinct tokens. None: as many as
            `count_subspaces` finds.

    Returns:
        labels [N], in 0..K-1. Their numbering means nothing. Where C is zero everywhere, all are 0. Where the
        affinity falls apart into several groups that do not touch, the largest eigenvalue repeats, and any basis of
        its eigenvectors is as good: how groups are then split, or merged where they are more than K (frames that
        repeat exactly), is arbitrary, and may differ from scikit-learn's.

    Raises:
        VaExportError: if the eigenvectors or the discretisation cannot be computed.
    """
    n = self_expression.shape[0]
    affinity = normalised_affinity(self_expression)
    if affinity is None:
        return np.zeros(n, dtype=np.int64)
    try:
        random = np.random.RandomState(_SEED)
        start = random.uniform(-1.0, 1.0, n)
        spectrum, embedding = spectral_embedding(*affinity, n_subspaces or min(_MOST_SUBSPACES + 1, n), start)
        count = n_subspaces or count_subspaces(spectrum)
        return discretise(embedding[:, :count], first_row=random.randint(n))
    except (np.linalg.LinAlgError, ArpackNoConvergence) as error:
        raise VaExportError(
            f"{n} tokens could not be clustered into {n_subspaces or 'automatically many'} subspaces: {error}",
            where="subspace_score",
            fix="use fewer subspaces, or leave duplicate tokens out",
        ) from error


def count_subspaces(spectrum: Matrix) -> int:
    """The number of subspaces by eigengap: the K >= 2 after which the affinity's eigenvalues fall the most.

    Ours, not the paper's, which has K = 24 for every video. K groups of tokens that express only each other have the
    eigenvalue 1 K times, and links between them move those a little (von Luxburg, "A tutorial on spectral
    clustering", 2007, section 8.3). One subspace is never the answer: its size would weight all tokens alike.

    Args:
        spectrum: [M], the largest eigenvalues of the normalised affinity, descending.

    Returns:
        K, from 2 to M - 1, the smallest of equals; M - 1 where there is no gap at all, as for more groups than M that
        do not touch; 1 where M < 3, for two tokens.
    """
    gaps = spectrum[1:-1] - spectrum[2:]  # after 2, 3, …, M - 1
    if gaps.size == 0:
        return 1
    return int(gaps.argmax()) + 2 if gaps.max() > _SMALLEST_GAP else spectrum.shape[0] - 1


def spectral_embedding(
    affinity: csr_array | DenseAffinity, root_degree: Matrix, n_subspaces: int, start: Matrix
) -> tuple[Matrix, Matrix]:
    """The K largest eigenvalues of D^-½ A D^-½, largest first [K], and D^-½ times their eigenvectors [N, K].

    `start` [N] is where the iteration for them starts.
    """
    spectrum, vectors = _leading_eigenpairs(affinity, n_subspaces, start)
    return spectrum, vectors / root_degree[:, None]


def _leading_eigenpairs(matrix: csr_array | DenseAffinity, count: int, start: Matrix) -> tuple[Matrix, Matrix]:
    n = matrix.shape[0]
    if n > max(_DENSE_TOKENS, 3 * count):
        subspace = min(n, max(3 * count, count + 40))
        try:
            eigenvalues, vectors = eigsh(matrix, count, which="LA", v0=start, ncv=subspace, maxiter=_LANCZOS_RESTARTS)
            order = np.argsort(-eigenvalues, kind="stable")
            return eigenvalues[order], vectors[:, order]
        except ArpackNoConvergence:
            if n > _MOST_DENSE_TOKENS:
                raise
    dense = matrix.toarray()
    chosen = (n - count, n - 1)
    eigenvalues, vectors = eigh(dense, subset_by_index=chosen, driver="evr", check_finite=False)
    if vectors.shape[1] < count:  # LAPACK's evr loses some where an eigenvalue repeats often, and calls that success
        eigenvalues, vectors = (part[..., n - count :] for part in eigh(dense, driver="evd", check_finite=False))
    return eigenvalues[::-1], vectors[:, ::-1]


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
