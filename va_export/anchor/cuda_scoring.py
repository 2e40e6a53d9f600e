"""`subspace_score` by the CUDA kernels: what they report, as the reference says it."""

from __future__ import annotations

import math
from typing import Any

from va_export.anchor.scorable import no_expression, no_result, overflowed
from va_export.anchor.subspace_details import SubspaceScore
from va_export.errors import VaExportError
from va_export.native.subspace_score_params import (
    EQUAL_TOKENS,
    LONE_TOKEN,
    NO_RESULT,
    NOT_FINITE,
    SOLVED,
    SubspaceScoreReport,
)
from va_export.settings import ScoreSettings


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
    if report.status not in (SOLVED, EQUAL_TOKENS):
        raise _refusal(report)
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


def _refusal(report: SubspaceScoreReport) -> VaExportError:
    if report.status == NOT_FINITE:
        return VaExportError(
            "tokens hold NaN or infinity", where="subspace_score", fix="check the vision tower's output"
        )
    if report.status == LONE_TOKEN:
        return no_expression(None, "float32")
    if report.status == NO_RESULT:
        return no_result(report.iterations, report.residual)
    return overflowed(report.iterations, "float32")
