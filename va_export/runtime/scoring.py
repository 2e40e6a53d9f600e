"""The subspace score when a bundle runs: between `vision` and `decoder`, on the host.

This is where a `SubspaceScore` engine will take over; everything else asks for a score through this one function.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from va_export.anchor import subspace_score
from va_export.runtime.score_cache import ScoreCache, Scored
from va_export.settings import ScoreSettings

__all__ = ["Scored", "score_visual_tokens"]


def score_visual_tokens(
    visual_tokens: npt.NDArray[np.float32],
    settings: ScoreSettings,
    dtype: Any = "float32",
    cache: ScoreCache | None = None,
) -> Scored:
    """Score (N, hidden_size) visual tokens with the host solver, or find their score in the cache.

    Raises:
        VaExportError: fewer tokens than subspaces, or tokens that are not finite.
    """
    if cache is not None:
        key = cache.key(visual_tokens, {**asdict(settings), "solver_dtype": dtype})
        known = cache.load(key, visual_tokens.shape[0])
        if known is not None:
            return known
    arguments = {**asdict(settings), "n_subspaces": settings.n_subspaces or "auto"}
    details = subspace_score(visual_tokens, **arguments, dtype=dtype, return_details=True)
    scored = Scored(
        sharing_score=np.asarray(details.sharing_score, dtype=np.float32),
        labels=np.asarray(details.labels, dtype=np.int64),
        iterations=int(details.iterations),
    )
    if cache is not None:
        cache.store(key, scored)
    return scored
