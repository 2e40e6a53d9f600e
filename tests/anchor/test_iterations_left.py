"""What is told of a score's iterations while it runs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from va_export.anchor import self_expression
from va_export.anchor.iterations_left import IterationsLeft
from va_export.anchor.self_expression import AdmmOptions, solve_self_expression

EPS = 2e-4


def test_a_residual_that_falls_as_the_model_says_is_told_exactly() -> None:
    model = IterationsLeft(EPS, 10000)
    for k in range(1, 101):
        model.note(k, math.exp(-0.3 * math.sqrt(k)))
    assert model.expected() == round((math.log(EPS) / 0.3) ** 2)


def test_nothing_is_told_where_nothing_is_known() -> None:
    model = IterationsLeft(EPS, 50)
    model.note(10, 0.5)
    assert model.expected() is None
    model.note(20, 0.6)  # it rose
    assert model.expected() is None
    model.note(30, math.nan)
    assert model.expected() is None
    model.note(40, 0.49)  # so slowly that max_iter comes first
    assert model.expected() == 50
    model.note(41, EPS / 2)
    assert model.expected() == 41


@pytest.mark.parametrize("is_compiled", [True, False])
def test_a_solver_tells_how_far_it_is(is_compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    planes = rng.standard_normal((4, 3, 60))
    tokens = np.einsum("nr,nrd->nd", rng.standard_normal((100, 3)), planes[np.arange(100) % 4])
    tokens += 0.05 * rng.standard_normal(tokens.shape)
    if is_compiled:
        monkeypatch.setattr(self_expression, "_iterations_a_call", lambda work: 5)
    else:
        monkeypatch.setattr(self_expression, "solver_library", lambda: None)
    told: list[tuple[int, int | None]] = []
    found = solve_self_expression(tokens, AdmmOptions(), on_progress=lambda *now: told.append(now))
    assert told[-1] == (found.iterations, found.iterations) and found.iterations > 100
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    (half,) = [expected for done, expected in told if 0 <= done - found.iterations // 2 < (5 if is_compiled else 1)]
    assert half is not None and 0.6 < half / found.iterations < 1.7  # a forecast: measured 0.85 to 1.25 on clips
