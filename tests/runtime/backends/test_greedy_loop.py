"""A backend that decodes by itself: when the bundle lets it, what it must agree with, and how its failure is told.

The backend here is ONNX Runtime's with a loop on the host, so that what the GPU's loop is used for can be tested
without one; the GPU's own is in tests/tensorrt/test_decode_loop.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refused

from va_export.proof.compare import check_parity
from va_export.proof.reference import read_reference
from va_export.runtime.bundle import Bundle


class Loop:
    """`greedy_steps` over a backend's embedding and `decode`."""

    def __init__(self, backend: Any, hidden_size: int) -> None:
        self.backend, self.no_visual = backend, np.zeros((1, hidden_size), np.float32)
        self.change: Callable[[int, int], int] = lambda step, token: token
        self.asked: list[tuple[int, int, int]] = []

    def __call__(self, token: int, past_length: int, position: int, cache: Any) -> Iterator[int]:
        self.asked.append((token, past_length, position))
        for step in range(1000):
            ids, is_visual = np.array([[token]]), np.zeros((1, 1), np.bool_)
            given = {"input_ids": ids, "is_visual": is_visual, "visual_tokens": self.no_visual}
            embeds = self.backend.run("embedding", given)["inputs_embeds"]
            capacity = next(iter(cache.values()))[0].value.shape()[2]
            gains = np.zeros((1, capacity), np.float32), np.ones((1, capacity), np.float32)
            position_ids = np.full((1, 1, 1), position + step)
            logits = self.backend.decode(embeds, position_ids, *gains, np.array([past_length + step]), cache)
            token = self.change(step, int(logits.argmax()))
            yield token


@pytest.fixture
def bundle(tiny_bundle: Path) -> Iterator[Bundle]:
    with Bundle.open(tiny_bundle) as opened:
        yield opened


@pytest.fixture
def loop(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Loop:
    made = Loop(bundle.backend, bundle.manifest.data.model.text.hidden_size)
    monkeypatch.setattr(bundle.backend, "has_greedy_loop", True, raising=False)
    monkeypatch.setattr(bundle.backend, "greedy_steps", made, raising=False)
    return made


@pytest.fixture
def question(bundle: Bundle) -> dict[str, Any]:
    pixels = np.random.default_rng(0).normal(size=(4, 3, 112, 112)).astype(np.float32)
    return {"pixel_values": pixels, "input_ids": bundle.prompt("What moves?", 4), "ignore_stop": True}


def test_the_loop_answers_as_the_host_does(bundle: Bundle, loop: Loop, question: dict[str, Any]) -> None:
    alone = bundle.generate(**question, max_new_tokens=6)
    length = question["input_ids"].shape[1]
    assert loop.asked == [(int(alone.tokens[0]), length, length)] and alone.logits is None
    by_host = bundle.generate(**question, max_new_tokens=6, return_logits=True)
    assert len(loop.asked) == 1  # logits are wanted on the host: no loop
    np.testing.assert_array_equal(alone.tokens, by_host.tokens)
    bundle.generate(**question, forced_tokens=alone.tokens)
    bundle.generate(**question, max_new_tokens=1)
    assert len(loop.asked) == 1  # nor for given tokens, nor for prefill's alone


def test_the_loop_is_told_positions_apart_from_slots(bundle: Bundle, loop: Loop, question: dict[str, Any]) -> None:
    pixels = {"pixel_values": question["pixel_values"]}
    prepared = bundle.processing.prepare_ids(question["input_ids"], pixels, max_frames=4)
    gapped = replace(prepared, position_ids=7 * prepared.position_ids, next_position=7 * prepared.length + 3)
    alone = bundle.answer(gapped, 6, ignore_stop=True)
    assert loop.asked == [(int(alone.tokens[0]), prepared.length, 7 * prepared.length + 3)]
    by_host = bundle.answer(gapped, 6, ignore_stop=True, return_logits=True)
    np.testing.assert_array_equal(alone.tokens, by_host.tokens)


def test_a_stop_id_ends_the_loop(bundle: Bundle, loop: Loop, question: dict[str, Any]) -> None:
    free = bundle.generate(**question, max_new_tokens=6).tokens.tolist()
    stop = bundle.processing.stop_token_ids[0]
    loop.change = lambda step, token: stop if step == 2 else token
    stopped = bundle.generate(**{**question, "ignore_stop": False}, max_new_tokens=6)
    assert stopped.tokens.tolist() == [*free[:3], stop]


def test_logits_that_are_not_finite_are_an_error(bundle: Bundle, loop: Loop, question: dict[str, Any]) -> None:
    loop.change = lambda step, token: -1 if step == 1 else token
    with refused("decoder"):
        bundle.generate(**question, max_new_tokens=6)


def test_parity_judges_the_loop(tiny_bundle: Path, bundle: Bundle, loop: Loop) -> None:
    reference = read_reference(tiny_bundle)
    entry = check_parity(bundle, reference)
    rows = [check for check in entry.checks if check.stage == "greedy_loop"]
    assert [row.anchors for row in rows] == [True, False] and all(row.passed for row in rows)
    assert entry.passed
    loop.change = lambda step, token: (token + 1) % 263 if step == 1 else token
    entry = check_parity(bundle, reference)
    assert not entry.passed
    assert {check.stage for check in entry.checks if not check.passed} == {"greedy_loop"}
