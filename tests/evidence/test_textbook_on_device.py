"""The torch form of the paper's solver, which is timed on GPUs, takes the steps of the NumPy one."""

from __future__ import annotations

import numpy as np
import torch

from va_export.anchor.textbook import textbook_self_expression
from va_export.evidence.textbook_on_device import _TextbookStep, textbook_seconds
from va_export.settings import ScoreSettings


def test_iterates_are_the_textbooks() -> None:
    tokens = np.random.default_rng(0).standard_normal((24, 7))
    solution = textbook_self_expression(tokens, max_iter=5)
    step = _TextbookStep(torch.from_numpy(tokens).T, ScoreSettings())
    for _ in range(5):
        step()
    np.testing.assert_allclose([step.lambda_e, step.lambda_z], [solution.lambda_e, solution.lambda_z], rtol=1e-12)
    # one solve by LU, the other by Cholesky, of a system with condition number about 1e4
    np.testing.assert_allclose(step.c.numpy(), solution.self_expression, atol=1e-9)
    assert np.isclose(step.residual, solution.residual, rtol=1e-6)


def test_time_is_a_multiple_of_the_iterations() -> None:
    tokens = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    assert textbook_seconds(tokens, 100, ScoreSettings()) > 0
    assert textbook_seconds(tokens, 0, ScoreSettings()) == 0
