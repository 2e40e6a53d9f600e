"""Whether a partition of tokens into subspaces is as good as the reference's, where the data determine one.

A token on the border of two subspaces may fall to either side by rounding, and then carries the other one's size: a
step that no roundoff bounds. Tokens without clear subspaces have many partitions that are about as good. And the copies
of a still clip express one another and nothing else, so that the affinity falls apart into more groups than there are
subspaces: any union of them is as good as any other. So a score with other labels than the reference's is compared with
the right score of its own labels, and of its partition is asked only what the data say.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec.structs import asdict
from scipy.linalg import eigh
from scipy.optimize import linear_sum_assignment

from va_export.anchor import subspace_score
from va_export.anchor.sharing import sharing_score
from va_export.anchor.subspace_details import SubspaceScore
from va_export.settings import ScoreSettings

Array = npt.NDArray[Any]

SAME, AS_GOOD, WORSE, UNDETERMINED = "same", "as good", "worse", "undetermined"
# Partitions of tokens without structure that end in other local optima cut within 0.1 % of each other; one of wrong
# eigenvectors is off by tens of percent.
_CUT_MARGIN = 0.02


class ReferencePartition:
    """The reference's subspaces, and others measured by its self-expression, which is solved again in float64 when it
    is first asked for.

    Args:
        tokens: [N, D]; labels: [N], the reference's; settings: of the score.
    """

    def __init__(self, tokens: Array, labels: Array, settings: ScoreSettings) -> None:
        self._tokens, self._labels, self._settings = tokens, labels, settings
        self._solved: Array | None = None

    def judge(self, labels: Array) -> str:
        """SAME, AS_GOOD, WORSE, or UNDETERMINED where the data leave it open."""
        if label_agreement(labels, self._labels) == 1.0:
            return SAME
        count = len(np.unique(self._labels))
        # Runs stop at a residual of eps, by which rows of C, and with two such runs the normalised affinity's
        # eigenvalues (Weyl), are apart: where the gap after the K-th is not larger, the eigenvectors of either side of
        # it mix at will (Davis and Kahan).
        if eigengap(self._expression, self._settings.n_subspaces or count) <= 2 * self._settings.eps:
            return UNDETERMINED
        bound = (1 + _CUT_MARGIN) * normalized_cut(self._expression, self._labels)
        # One subspace for all tokens would cut nothing.
        is_as_good = len(np.unique(labels)) >= count and normalized_cut(self._expression, labels) <= bound
        return AS_GOOD if is_as_good else WORSE

    def score_of(self, labels: Array) -> Array:
        """The sharing score [N] that belongs to labels [N]."""
        return sharing_score(self._expression.sum(axis=1), labels)

    def score_at(self, labels: Array, iterations: int) -> Array | None:
        """The sharing score [N] that belongs to labels [N] where the solver, in float64, is stopped after so many
        iterations; None where it would not stop thereabouts.

        Near its stop the iteration still moves (a Gram matrix that is singular, as equal tokens make it, lets it move
        for long), and rounding decides at which step the residual falls below eps. So a float32 score that is not
        float64's may be that of a neighbouring step. Such a step has a residual of at most twice eps: float32's
        residual itself, a sum over a row of |A − C|, is that uncertain where the stop test falls a few steps away.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is stopped is meant
            details = self._solve(max_iter=iterations)
        if details.residual > 2 * self._settings.eps:
            return None
        return sharing_score(np.asarray(details.self_expression, dtype=np.float64).sum(axis=1), labels)

    @property
    def _expression(self) -> Array:
        if self._solved is None:
            self._solved = np.asarray(self._solve().self_expression, dtype=np.float64)
        return self._solved

    def _solve(self, **changed: Any) -> SubspaceScore:
        arguments = {**asdict(self._settings), "n_subspaces": self._settings.n_subspaces or "auto", **changed}
        return subspace_score(self._tokens, **arguments, dtype="float64", return_details=True)


def normalized_cut(self_expression: Array, labels: Array) -> float:
    """Σ over subspaces of the affinity |C| + |C|ᵀ that leaves it, as a share of all that its tokens have: what spectral
    clustering minimises, in [0, number of subspaces]."""
    affinity = np.abs(self_expression) + np.abs(self_expression).T
    degree = affinity.sum(axis=1)
    member = labels[:, None] == np.unique(labels)
    inside = np.einsum("ik,ij,jk->k", member.astype(np.float64), affinity, member.astype(np.float64), optimize=True)
    return float((1 - inside / (degree @ member)).sum())


def eigengap(self_expression: Array, count: int) -> float:
    """λ_K − λ_{K+1} of the affinity |C| + |C|ᵀ, normalised by its degrees, for K = `count`; infinite where there is
    nothing to leave out."""
    affinity = np.abs(self_expression) + np.abs(self_expression).T
    degree = affinity.sum(axis=1)
    if count >= len(degree) or not degree.any():
        return np.inf
    root = np.sqrt(np.where(degree > 0, degree, 1.0))
    at = len(degree) - count
    spectrum = eigh(affinity / root / root[:, None], eigvals_only=True, subset_by_index=(at - 1, at))
    return float(spectrum[1] - spectrum[0])


def label_agreement(actual: Array, expected: Array) -> float:
    """Share of tokens in the same cluster, under the best one-to-one renaming of clusters."""
    size = int(max(actual.max(), expected.max())) + 1
    overlap = np.zeros((size, size), dtype=np.int64)
    np.add.at(overlap, (actual, expected), 1)
    rows, columns = linear_sum_assignment(overlap, maximize=True)
    return float(overlap[rows, columns].sum() / len(actual))
