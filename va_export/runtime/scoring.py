"""The subspace score when a bundle runs: between `vision` and `decoder`, on the host.

This is where a `SubspaceScore` engine will take over; everything else asks for a score through this one function.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from va_export.anchor import subspace_score
from va_export.settings import ScoreSettings


@dataclass(frozen=True)
class Scored:
    """Sharing score in [0, 1] and subspace of each visual token, (N,) each; iterations that the solver took."""

    sharing_score: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    iterations: int


def score_visual_tokens(
    visual_tokens: npt.NDArray[np.float32], settings: ScoreSettings, dtype: Any = "float32"
) -> Scored:
    """Score (N, hidden_size) visual tokens with the host solver.

    Raises:
        VaExportError: fewer tokens than subspaces, or tokens that are not finite.
    """
    details = subspace_score(visual_tokens, **asdict(settings), dtype=dtype, return_details=True)
    return Scored(
        sharing_score=np.asarray(details.sharing_score, dtype=np.float32),
        labels=np.asarray(details.labels, dtype=np.int64),
        iterations=int(details.iterations),
    )
