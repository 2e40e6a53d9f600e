"""Tokens are chosen as Transformers' logits processors would have them, and drawn as often as they are likely."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from refusals import refused
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from va_export.runtime.token_choice import Sampling, TokenChoice

WORDS = 50


def logits(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, WORDS).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("top_k", [0, 1, 7, WORDS, 1000])
@pytest.mark.parametrize("top_p", [0.0, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.7])
def test_probabilities_are_transformers(temperature: float, top_k: int, top_p: float, penalty: float) -> None:
    """Its processors in float64, in the order in which `generate` has them."""
    processors = LogitsProcessorList()
    seen = [3, 5, 5, 11]
    processors.append(RepetitionPenaltyLogitsProcessor(penalty))
    processors.append(TemperatureLogitsWarper(temperature))
    if top_k:
        processors.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        processors.append(TopPLogitsWarper(top_p))
    for seed in range(5):
        scores = processors(torch.tensor([seen]), torch.from_numpy(logits(seed)).double()[None])
        expected = torch.softmax(scores, dim=-1)[0].numpy()
        found = Sampling(temperature, top_k, top_p, penalty).probabilities(logits(seed), seen)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    sampling = Sampling(temperature=1.5, top_p=0.9, seed=2509)
    expected = sampling.probabilities(logits(), ())
    choice, draws = TokenChoice(sampling, ()), 20_000
    counts = np.bincount([choice(logits()) for _ in range(draws)], minlength=WORDS)
    assert (counts[expected == 0] == 0).all() and (expected == 0).sum() > 20
    # Five standard deviations of a binomial count.
    assert (np.abs(counts - draws * expected) <= 5 * np.sqrt(draws * expected * (1 - expected)) + 1).all()


def test_a_seed_is_the_same_tokens_and_none_is_others() -> None:
    def drawn(seed: int | None) -> list[int]:
        choice = TokenChoice(Sampling(temperature=2.0, seed=seed), ())
        return [choice(logits(number)) for number in range(20)]

    assert drawn(7) == drawn(7) != drawn(8)
    assert drawn(None) != drawn(None)
    unsaid = TokenChoice(Sampling(temperature=2.0), ())
    tokens = [unsaid(logits(number)) for number in range(20)]
    assert drawn(unsaid.sampling.seed) == tokens


def test_the_likeliest_with_and_without_a_penalty() -> None:
    scores = np.array([1.0, 2.0, 1.9, -1.0], np.float32)
    assert [TokenChoice(Sampling(), (1,))(scores) for _ in range(3)] == [1, 1, 1]
    choice = TokenChoice(Sampling(repetition_penalty=2.5), ())
    assert [choice(scores) for _ in range(4)] == [1, 2, 0, 1]  # each is less likely once it was there


def test_logarithms_are_of_the_logits_as_they_are() -> None:
    choice = TokenChoice(Sampling(temperature=5.0, top_k=3, repetition_penalty=2.0, seed=1), (), logprobs=4)
    token = choice(logits())
    expected = torch.log_softmax(torch.from_numpy(logits()).double(), dim=-1).numpy()
    (noted,) = choice.noted
    order = np.argsort(-expected)[:4]
    assert [one for one, _ in noted.likeliest] == order.tolist()
    np.testing.assert_allclose([value for _, value in noted.likeliest], expected[order], rtol=1e-12)
    assert noted.chosen == pytest.approx(expected[token], rel=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_not_finite_is_no_choice(bad: float, temperature: float) -> None:
    scores = logits()
    scores[3] = bad
    with refused("decoder"):
        TokenChoice(Sampling(temperature), ())(scores)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (-1, float("nan"), float("inf"), "1", True)),
        *(("top_k", value) for value in (-1, 1.5, None)),
        *(("top_p", value) for value in (-0.1, 1.01, float("nan"))),
        *(("repetition_penalty", value) for value in (0, -1, float("inf"))),
        *(("seed", value) for value in (-1, 0.5, "x")),
    ],
)
def test_what_is_no_setting_is_refused(name: str, value: object) -> None:
    with refused(name):
        Sampling(**{name: value})  # type: ignore[arg-type]
