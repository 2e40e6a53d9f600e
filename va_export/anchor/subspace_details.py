"""What `subspace_score` and the CUDA kernels hand back beside the score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from va_export.anchor.warm_start import SolverState


@dataclass(frozen=True)
class SubspaceScore:
    """Sharing scores and how they came about. Arrays are of the tokens' kind (NumPy or torch), on their
    device.

    Attributes:
        sharing_score: [N], in [0, 1].
        self_expression: C [N, N]: column j writes token j as a combination of the others; zero diagonal.
        labels: [N] int64, the subspace of each token; the numbering means nothing.
        iterations: ADMM iterations taken; 0 where all tokens are equal and there was nothing to solve.
        lambda_e, lambda_z: weights of the error terms, for the tokens as given; NaN where nothing was solved.
        converged: whether the residual fell below eps within max_iter.
        residual: max row sum of |A − C| at the end; after a warm start with more tokens, in such units that converged
            still means below eps.
        state: what a later call's `warm_start` needs; None unless `keep_state` asked for it.
    """

    sharing_score: Any
    self_expression: Any
    labels: Any
    iterations: int
    lambda_e: float
    lambda_z: float
    converged: bool
    residual: float
    state: SolverState | None = None
