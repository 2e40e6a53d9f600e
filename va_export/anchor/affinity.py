"""The affinity |C| + |C|ᵀ of a self-expression, normalised by its degrees, as an eigensolver multiplies by it.

The soft threshold leaves a converged C with few entries, 2 % of them at 16 384 tokens, and a sparse float64 matrix of
those is smaller and faster than any other form. Where a run was stopped early, or tokens share next to nothing, C is
full. Sparse, that would take 84 bytes an entry while it is put together (measured): 22 GB at 16 384 tokens. So beyond a
number of entries the matrix stays dense and in C's own type, one array beside C.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.linalg import LinearOperator

Matrix = np.ndarray[Any, np.dtype[np.float64]]

MOST_SPARSE_ENTRIES = 1 << 25  # 2.8 GB while they are put together
_BLOCK = 512  # rows of C at a time where its entries are counted, rows and columns where it is turned
_BLOCK_BYTES = 8 << 20  # of a dense affinity, converted to float64 at a time: they stay in a cache


class DenseAffinity(LinearOperator):  # type: ignore[misc]  # SciPy ships no types
    """D^-½ A D^-½ for a dense symmetric A of any floating type, multiplied in float64.

    Args:
        affinity: A [N, N].
        root_degree: the diagonal of D^½ [N].
    """

    def __init__(self, affinity: np.ndarray[Any, Any], root_degree: Matrix) -> None:
        super().__init__(np.dtype(np.float64), affinity.shape)
        self._affinity, self._root_degree = affinity, root_degree
        self._rows = max(1, _BLOCK_BYTES // (8 * len(affinity)))

    def _matvec(self, vector: Matrix) -> Matrix:
        scaled = np.ravel(vector) / self._root_degree
        product = np.empty_like(scaled)
        for start in range(0, len(scaled), self._rows):
            rows = slice(start, start + self._rows)
            product[rows] = self._affinity[rows].astype(np.float64) @ scaled
        return product / self._root_degree

    def toarray(self) -> Matrix:
        """As a plain matrix."""
        dense: Matrix = self._affinity.astype(np.float64)
        dense /= self._root_degree[:, None]
        dense /= self._root_degree
        return dense


def normalised_affinity(self_expression: np.ndarray[Any, Any]) -> tuple[csr_array | DenseAffinity, Matrix] | None:
    """(D^-½ A D^-½ [N, N], the diagonal of D^½ [N]) for A = |C| + |C|ᵀ and its row sums D; None where C is zero.

    A token that expresses none and that none expresses has the degree 1.
    """
    n = self_expression.shape[0]
    count = sum(int(np.count_nonzero(self_expression[start : start + _BLOCK])) for start in range(0, n, _BLOCK))
    if count == 0:
        return None
    if count > MOST_SPARSE_ENTRIES:
        dense = _dense_affinity(self_expression)
        root_degree = _root(dense.sum(axis=1, dtype=np.float64))
        return DenseAffinity(dense, root_degree), root_degree
    sparse = _sparse_affinity(self_expression)
    root_degree = _root(sparse.sum(axis=1))
    sparse.data /= root_degree[np.repeat(np.arange(n), np.diff(sparse.indptr))] * root_degree[sparse.indices]
    return sparse, root_degree


def _root(degree: Matrix) -> Matrix:
    root: Matrix = np.sqrt(degree)
    root[root == 0.0] = 1.0
    return root


def _sparse_affinity(self_expression: np.ndarray[Any, Any]) -> csr_array:
    """float64; nothing dense of its size is made."""
    n = self_expression.shape[0]
    rows, columns, values = [], [], []
    for start in range(0, n, _BLOCK):
        block = self_expression[start : start + _BLOCK]
        row, column = np.nonzero(block)
        values.append(np.abs(block[row, column]).astype(np.float64))
        rows.append((row + start).astype(np.int32))
        columns.append(column.astype(np.int32))
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    size = coo_array(entries, shape=(n, n)).tocsr()
    return csr_array(size + size.T)


def _dense_affinity(self_expression: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """In C's type, with no temporary of its size."""
    size: np.ndarray[Any, Any] = np.abs(self_expression)
    for start in range(0, len(size), _BLOCK):
        for other in range(start, len(size), _BLOCK):
            upper = size[start : start + _BLOCK, other : other + _BLOCK]
            lower = size[other : other + _BLOCK, start : start + _BLOCK]
            total = upper + lower.T
            upper[...] = total
            lower[...] = total.T
    return size
