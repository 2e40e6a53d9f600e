"""Fixtures of the anchor tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import pytest
from golden_scores import load_golden_score
from threadpoolctl import threadpool_limits

from va_export.anchor.textbook import TextbookSolution, textbook_self_expression


@pytest.fixture(scope="session", autouse=True)
def _one_blas_thread() -> Iterator[None]:
    """Matrices of a few hundred rows lose more to waiting threads than they win."""
    with threadpool_limits(limits=1):
        yield


@pytest.fixture(scope="session")
def textbook_solution() -> Callable[[str], TextbookSolution]:
    """The literal solver's result for a golden case, computed once."""
    return cache(lambda name: textbook_self_expression(load_golden_score(name).projected))
