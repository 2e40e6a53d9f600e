"""The subspace score when a bundle runs: between `vision` and `decoder`, by the host's solver or the bundle's graph.

Everything that runs a bundle asks for a score through this one function.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from msgspec.structs import asdict

from va_export.anchor import subspace_score
from va_export.anchor.iterations_left import OnProgress
from va_export.anchor.scorable import NO_SCORE
from va_export.errors import VaExportError
from va_export.runtime.backends.backend import Backend
from va_export.runtime.score_cache import ScoreCache, Scored
from va_export.settings import ScoreSettings

__all__ = ["SCORERS", "Scored", "Scorer", "score_visual_tokens"]

Scorer = Literal["host", "graph"]
SCORERS: tuple[Scorer, ...] = get_args(Scorer)


def score_visual_tokens(
    visual_tokens: npt.NDArray[np.float32],
    settings: ScoreSettings,
    dtype: Any = "float32",
    cache: ScoreCache | None = None,
    backend: Backend | None = None,
    on_progress: OnProgress | None = None,
) -> Scored:
    """Score (N, hidden_size) visual tokens, or find their score in the cache.

    Args:
        dtype: of the host's solver.
        backend: whose `score` component is to do it, with the settings that it was exported with; None: the host's
            solver.
        on_progress: of the host's solver, as `va_export.anchor.subspace_score` calls it.

    Raises:
        VaExportError: tokens without a score, as `va_export.anchor.subspace_score` refuses them.
    """
    if cache is not None:
        solver = {"solver_dtype": dtype} if backend is None else {"solver_graph": backend.name}
        key = cache.key(visual_tokens, {**asdict(settings), **solver})
        known = cache.load(key, visual_tokens.shape[0])
        if known is not None:
            return known
    scored = (
        _score_on_host(visual_tokens, settings, dtype, on_progress)
        if backend is None
        else _score_in_graph(visual_tokens, settings, backend)
    )
    # What used up its iterations may not have converged: the warning of that must come again.
    if cache is not None and scored.iterations < settings.max_iter:
        cache.store(key, scored)
    return scored


def _score_on_host(
    visual_tokens: npt.NDArray[np.float32], settings: ScoreSettings, dtype: Any, on_progress: OnProgress | None
) -> Scored:
    arguments = {**asdict(settings), "n_subspaces": settings.n_subspaces or "auto"}
    details = subspace_score(visual_tokens, **arguments, dtype=dtype, return_details=True, on_progress=on_progress)
    return Scored(
        sharing_score=np.asarray(details.sharing_score, dtype=np.float32),
        labels=np.asarray(details.labels, dtype=np.int64),
        iterations=int(details.iterations),
    )


def _score_in_graph(visual_tokens: npt.NDArray[np.float32], settings: ScoreSettings, backend: Backend) -> Scored:
    # A graph raises nothing: without these, the answer would be that of the plain model without a word.
    if len(visual_tokens) < settings.n_subspaces:
        raise VaExportError(
            f"{len(visual_tokens)} tokens cannot form {settings.n_subspaces} subspaces",
            where="score",
            fix="use more frames, or export with fewer --subspaces",
        )
    if not np.isfinite(visual_tokens).all():
        raise VaExportError("visual tokens hold NaN or infinity", where="score", fix="check the vision component")
    outputs = backend.run("score", {"visual_tokens": np.ascontiguousarray(visual_tokens)})
    if (outputs["labels"] == NO_SCORE).any():
        raise VaExportError(
            "these visual tokens have no score in float32: one is zero or orthogonal to every other, or the"
            " self-expression solver ended without a result",
            where="score",
            fix='open the bundle with score="host", which tells which',
        )
    return Scored(outputs["sharing_score"], outputs["labels"], iterations=0)
