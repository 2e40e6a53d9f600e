"""The decode loop's bookkeeping, on sessions in host memory: who reads what, when a graph is made, and when it is not.

The model: token t in slot s makes the logits peak at (3 t + s + 2 a + 4 b + 6 c + 1) mod VOCAB, where (a, b, c) is its
position on three axes. Two decoder parts, so that hidden states are handed on.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeDevice

from va_export.bundle.decoder_shards import DecoderShard
from va_export.native.greedy_step import GreedyStepParams
from va_export.runtime.backends.tensorrt_decode_loop import DecodeLoop
from va_export.tensorrt.cuda_device import DeviceBuffer

VOCAB, CAPACITY, HIDDEN, AXES = 11, 16, 4, 3
AHEAD = 5  # positions are not slots: here they are so far ahead
FLOAT = np.dtype(np.float32)


class FakeSession:
    """`bind` and `enqueue` of TensorRTSession, its engine a function from inputs to the output."""

    def __init__(self, device: FakeDevice, output: str, shape: tuple[int, ...], compute: Callable[..., Any]) -> None:
        self.device, self.output, self.compute = device, output, compute
        self.buffer = device.zeros(shape, FLOAT)
        self.inputs: Mapping[str, DeviceBuffer] = {}
        self.runs = 0

    def bind(self, inputs: Mapping[str, DeviceBuffer], cache: Any = None) -> dict[str, DeviceBuffer]:
        self.inputs = inputs
        return {self.output: self.buffer}

    def enqueue(self) -> None:
        self.runs += 1
        values = {name: self.device.download(buffer) for name, buffer in self.inputs.items()}
        self.device.upload(np.ascontiguousarray(self.compute(**values), dtype=np.float32), self.buffer.address)

    def grow(self) -> None:
        """Other memory for the output, as after a longer prompt."""
        self.buffer = self.device.zeros(self.buffer.shape, FLOAT)


class Model:
    def __init__(self) -> None:
        self.device = FakeDevice()
        self.poison_at = -1
        first, last = DecoderShard("decoder_0", 0, 1, 2), DecoderShard("decoder_1", 1, 2, 2)
        self.embedding = FakeSession(self.device, "inputs_embeds", (1, 1, 1), self.embed)
        self.first = FakeSession(self.device, first.output_name, (1, 1, 1), self.hand_on)
        self.last = FakeSession(self.device, last.output_name, (1, VOCAB), self.decide)
        self.parts = [(first, self.first, None), (last, self.last, None)]
        self.loop = self.make_loop(captures=True)

    def make_loop(self, captures: bool) -> DecodeLoop:
        library: Any = SimpleNamespace(va_greedy_step_launch=self.greedy_step)
        arguments: Any = (self.device, self.embedding, self.parts, HIDDEN, AXES, CAPACITY, library)
        return DecodeLoop(*arguments, captures)

    def embed(self, input_ids: Any, is_visual: Any, visual_tokens: Any) -> Any:
        assert not is_visual.any() and visual_tokens.shape == (1, HIDDEN)
        return input_ids[:, :, None]

    def hand_on(self, inputs_embeds: Any, **common: Any) -> Any:
        return inputs_embeds * 3

    def decide(
        self, hidden_states: Any, position_ids: Any, key_log_gain: Any, value_gain: Any, past_length: Any
    ) -> Any:
        assert (key_log_gain == 0).all() and (value_gain == 1).all() and value_gain.shape == (1, CAPACITY)
        assert position_ids.shape == (AXES, 1, 1)
        place = past_length[0] + int(position_ids[:, 0, 0] @ [2, 4, 6])
        logits = np.zeros((1, VOCAB))
        logits[0, int(hidden_states[0, 0, 0] + place + 1) % VOCAB] = 1.0
        return np.full_like(logits, np.nan) if past_length[0] == self.poison_at else logits

    def greedy_step(self, reference: Any, stream: int) -> int:
        params = ctypes.cast(reference, ctypes.POINTER(GreedyStepParams)).contents
        logits = self.device.view(params.logits, (1, params.vocab), np.float32)
        token = int(logits.argmax()) if np.isfinite(logits).all() else -1
        self.device.view(params.token_ids, (1,), np.int64)[0] = max(token, 0)
        self.device.view(params.past_length, (1,), np.int64)[0] += 1
        self.device.view(params.position_ids, (params.axes, 1), np.int64)[:] += 1
        self.device.view(params.chosen, (1,), np.int64)[0] = token
        return 0


def expected(token: int, past: int, count: int) -> list[int]:
    tokens = []
    for slot in range(past, past + count):
        token = (3 * token + slot + (2 + 4 + 6) * (slot + AHEAD) + 1) % VOCAB
        tokens.append(token)
    return tokens


def take(loop: DecodeLoop, token: int, past: int, count: int) -> list[int]:
    steps = loop.steps(token, past, past + AHEAD)
    return [next(steps) for _ in range(count)]


@pytest.fixture
def model() -> Model:
    return Model()


def test_tokens_feed_themselves(model: Model) -> None:
    assert take(model.loop, 4, 6, 5) == expected(4, 6, 5)
    assert model.embedding.runs == model.last.runs == 5


def test_the_first_step_runs_and_the_rest_are_one_graph(model: Model) -> None:
    take(model.loop, 4, 6, 5)
    assert (model.device.captures, model.device.launches) == (1, 4)


def test_another_answer_makes_its_own_graph(model: Model) -> None:
    take(model.loop, 4, 6, 3)
    assert take(model.loop, 7, 2, 3) == expected(7, 2, 3)
    assert (model.device.captures, model.device.launches) == (2, 2 + 2)


def test_memory_that_has_moved_is_followed(model: Model) -> None:
    take(model.loop, 4, 6, 3)
    model.last.grow()
    assert take(model.loop, 7, 2, 4) == expected(7, 2, 4)


def test_only_the_token_is_copied_after_the_start(model: Model) -> None:
    steps = model.loop.steps(4, 6, 6 + AHEAD)
    next(steps)
    next(steps)
    before = len(model.device.uploads) - 3 * 2  # the fake engines "upload" their outputs: three a step
    for _ in range(4):
        next(steps)
    assert len(model.device.uploads) - 3 * 6 == before


def test_what_cannot_be_captured_runs_step_by_step(model: Model) -> None:
    model.device.refuses_capture = True
    assert take(model.loop, 4, 6, 5) == expected(4, 6, 5)
    assert model.device.launches == 0


def test_without_graphs_nothing_is_captured(model: Model) -> None:
    assert take(model.make_loop(captures=False), 4, 6, 5) == expected(4, 6, 5)
    assert model.device.captures == 0


def test_logits_that_are_not_finite_are_told(model: Model) -> None:
    model.poison_at = 8
    assert take(model.loop, 4, 6, 3) == [*expected(4, 6, 2), -1]
