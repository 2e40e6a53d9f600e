"""`subspace_score` by the CUDA kernels: what they report, as the reference says it."""

from __future__ import annotations

import math
from typing import Any

from va_export.anchor.subspace_details import SubspaceScore
from va_export.errors import VaExportError
from va_export.native.subspace_score_params import EQUAL_TOKENS, LONE_TOKEN, NOT_FINITE, OVERFLOW
from va_export.settings import ScoreSettings

_WHERE = "subspace_score"
_REFUSALS = {
    NOT_FINITE: ("tokens hold NaN or infinity", "check the vision tower's output"),
    LONE_TOKEN: (
        "a token is zero or orthogonal to every other token: no combination of them expresses it",
        "leave such tokens out before scoring",
    ),
    OVERFLOW: (
        "the self-expression solver overflowed in float32",
        'use dtype="float64", or settings nearer to the paper\'s',
    ),
}


def score_on_cuda(tokens: Any, settings: ScoreSettings, dtype: str) -> SubspaceScore | None:
    """Score tokens [N, D] with the CUDA kernels; None where they were not asked for or do not take these tokens
    (`va_export.native.subspace_score.cuda_kernel_serves`). Waits for the GPU, to say what it found.

    Raises:
        VaExportError: as `subspace_score`.
    """
    from va_export.native.subspace_score import cuda_kernel_serves

    return details_by_kernels(tokens, settings) if cuda_kernel_serves(tokens, settings, dtype) else None


def details_by_kernels(tokens: Any, settings: ScoreSettings) -> SubspaceScore:
    """Score tokens [N, D] with the CUDA kernels, whatever the environment says, and wait for them.

    Raises:
        VaExportError: as `subspace_score`, or as `subspace_score_cuda` where the kernels do not take these tokens.
    """
    from va_export.native.subspace_score import subspace_score_cuda

    result = subspace_score_cuda(tokens, settings, self_expression=True)
    report = result.report()
    if report.status in _REFUSALS:
        what, fix = _REFUSALS[report.status]
        raise VaExportError(what, where=_WHERE, fix=fix)
    is_equal = report.status == EQUAL_TOKENS
    return SubspaceScore(
        sharing_score=result.sharing_score,
        self_expression=result.self_expression,
        labels=result.labels,
        iterations=report.iterations,
        lambda_e=math.nan if is_equal else report.lambda_e,
        lambda_z=math.nan if is_equal else report.lambda_z,
        converged=is_equal or report.residual < settings.eps,
        residual=report.residual,
    )
