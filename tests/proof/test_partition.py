"""Scores of neighbouring steps of the solver; partitions are in test_parity.py."""

from __future__ import annotations

import numpy as np

from va_export.anchor import subspace_score
from va_export.proof.partition import ReferencePartition
from va_export.settings import ScoreSettings


def test_a_score_of_a_neighbouring_step_is_held_against_float64s_of_that_step() -> None:
    """Equal tokens make a singular Gram matrix: the iteration moves for long near its stop."""
    random = np.random.default_rng(3)
    basis = [np.linalg.qr(random.normal(size=(24, 3)))[0] for _ in range(3)]
    tokens = np.concatenate([(random.normal(size=(12, 3)) @ part.T) for part in basis] + [np.ones((12, 24))])
    settings = ScoreSettings(n_subspaces=4)
    whole = subspace_score(tokens, n_subspaces=4, dtype="float64", return_details=True)
    labels = np.asarray(whole.labels)
    partition = ReferencePartition(tokens, labels, settings)
    same = partition.score_at(labels, whole.iterations)
    assert same is not None
    np.testing.assert_allclose(same, whole.sharing_score, atol=1e-12)
    before = partition.score_at(labels, whole.iterations - 2)
    assert before is not None and np.abs(before - same).max() > 0
    assert partition.score_at(labels, whole.iterations // 4) is None  # nowhere near the stop: no result
