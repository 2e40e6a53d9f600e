"""The affinity in its two forms, and that they give one clustering."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from va_export.anchor import affinity as affinity_module
from va_export.anchor.affinity import DenseAffinity, normalised_affinity
from va_export.anchor.spectral import cluster_subspaces


def self_expression(n: int, groups: int, dtype: type, seed: int = 0) -> np.ndarray:
    """C [n, n] without a zero off the diagonal, stronger within `groups` blocks of equal size, shuffled."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.arange(n) % groups)
    expression = rng.standard_normal((n, n)) * np.where(group[:, None] == group, 1.0, 0.02)
    np.fill_diagonal(expression, 0.0)
    return expression.astype(dtype)


def plainly(expression: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As its definition says, in float64."""
    size = np.abs(expression.astype(np.float64))
    size += size.T
    root = np.sqrt(size.sum(axis=1))
    root[root == 0.0] = 1.0
    return size / root[:, None] / root, root


@pytest.fixture
def always_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity_module, "MOST_SPARSE_ENTRIES", 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 7, 512, 1100])  # one block, blocks that end early
def test_dense_form_is_the_definition(n: int, dtype: type, always_dense: None) -> None:
    expression = self_expression(n, 3, dtype)
    if n > 3:
        expression[3] = expression[:, 3] = 0.0  # a token without any relation
    before = expression.copy()
    found = normalised_affinity(expression)
    if n == 1:  # its only entry is the diagonal's
        assert found is None
        return
    assert found is not None
    matrix, root_degree = found
    expected, expected_root = plainly(expression)
    # One rounding of the sum of two entries in C's type.
    tolerance = 4 * np.finfo(dtype).eps
    assert isinstance(matrix, DenseAffinity) and matrix.dtype == np.float64
    np.testing.assert_allclose(root_degree, expected_root, rtol=tolerance)
    np.testing.assert_allclose(matrix.toarray(), expected, rtol=tolerance)
    vector = np.random.default_rng(1).standard_normal(n)
    np.testing.assert_allclose(matrix @ vector, matrix.toarray() @ vector, rtol=1e-12, atol=1e-14)
    assert np.array_equal(expression, before)


def test_both_forms_cluster_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """700 tokens: above the size up to which a dense eigensolver is called."""
    expression = self_expression(700, 5, np.float32)
    sparse = cluster_subspaces(expression, 5)
    monkeypatch.setattr(affinity_module, "MOST_SPARSE_ENTRIES", 0)
    dense = cluster_subspaces(expression, 5)
    assert len(set(sparse.tolist())) == 5 and np.array_equal(sparse, dense)
    assert np.array_equal(cluster_subspaces(expression, None), cluster_subspaces(expression, 5))


def test_a_full_matrix_takes_one_array_beside_it(always_dense: None) -> None:
    """What lets 16 384 tokens, 1.07 GB an array, cluster in a few gigabytes whatever C is."""
    expression = self_expression(2048, 4, np.float32)
    tracemalloc.start()
    labels = cluster_subspaces(expression, 4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(labels.tolist())) == 4
    assert peak < 2 * expression.nbytes  # the array, blocks of 8 MB and the eigensolver's vectors
