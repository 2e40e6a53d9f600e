"""The greedy loop over a stepper that is a table: who chooses what, who ends when, and what is kept."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from refusals import refused

from va_export.runtime.backends.backend import Float32, Int64
from va_export.runtime.session import greedy

VOCAB = 5
STOP = 4


def logits_of(*tokens: int) -> Float32:
    """(B, VOCAB) of which each row's likeliest is the given token."""
    logits = np.zeros((len(tokens), VOCAB), np.float32)
    logits[np.arange(len(tokens)), tokens] = 1.0
    return logits


class Counting:
    """Every row's next token is one more than the one that is fed; remembers what was fed."""

    def __init__(self) -> None:
        self.fed: list[list[int]] = []
        self.given: list[weakref.ref[Float32]] = []

    def __call__(self, tokens: Int64) -> Float32:
        self.fed.append(tokens.tolist())
        logits = logits_of(*((tokens + 1) % VOCAB))
        self.given.append(weakref.ref(logits))
        return logits


def test_each_row_ends_at_its_own_stop_and_is_fed_on() -> None:
    step, told = Counting(), list[tuple[int, int]]()
    steps = greedy(logits_of(3, 0), step, 4, stops=(STOP,), on_token=lambda row, token: told.append((row, token)))
    assert steps.tokens == [[3, 4], [0, 1, 2, 3]]
    assert step.fed == [[3, 0], [4, 1], [0, 2]]
    assert told == [(0, 3), (1, 0), (0, 4), (1, 1), (1, 2), (1, 3)]


def test_no_step_after_the_last_token() -> None:
    step = Counting()
    assert greedy(logits_of(3), step, 9, stops=(STOP,)).tokens == [[3, 4]]
    assert greedy(logits_of(0), step, 1).tokens == [[0]]
    assert step.fed == [[3]]


def test_forced_tokens_do_not_stop() -> None:
    forced = np.array([[STOP, 0, 2]])
    steps = greedy(logits_of(1), Counting(), 3, stops=(STOP,), forced=forced)
    assert steps.tokens == [[STOP, 0, 2]]
    assert np.array_equal(np.concatenate(steps.logits).argmax(-1), [1, 0, 1])


def test_logits_are_freed_unless_they_are_asked_for() -> None:
    for keep in (True, False):
        step = Counting()
        steps = greedy(logits_of(0), step, 4, keep_logits=keep)
        gc.collect()
        alive = sum(reference() is not None for reference in step.given)
        assert (len(steps.logits), alive) == ((4, 3) if keep else (0, 0))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused_in_rows_that_go_on(value: float) -> None:
    def step(tokens: Int64) -> Float32:
        logits = logits_of(0, 1)
        logits[0] = value
        return logits

    with refused("decoder"):
        greedy(logits_of(0, 0), step, 2)
    assert greedy(logits_of(STOP, 0), step, 2, stops=(STOP,)).tokens == [[STOP], [0, 1]]
