"""The device's end of a greedy step: its own source on the CPU against NumPy."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from va_export.native.greedy_step import GreedyStepParams, bind

SIMT = Path(__file__).parent / "simt"
GUARD = -77


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, cxx: str, host_flags: list[str]) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("greedy") / "greedy_step_host.so"
    source = SIMT / "greedy_step_host.cpp"
    subprocess.run([cxx, *host_flags, "-O2", "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
    bound = bind(ctypes.CDLL(str(path)))
    assert bound is not None
    return bound


def step(library: ctypes.CDLL, logits: np.ndarray[Any, Any], past: list[int]) -> tuple[Any, Any, Any]:
    batch, vocab = logits.shape
    outputs = [np.full(batch + 1, GUARD, np.int64) for _ in range(3)]
    outputs[1][:batch] = past
    params = GreedyStepParams(
        logits=logits.ctypes.data,
        token_ids=outputs[0].ctypes.data,
        past_length=outputs[1].ctypes.data,
        chosen=outputs[2].ctypes.data,
        batch=batch,
        vocab=vocab,
    )
    assert library.va_greedy_step_launch(ctypes.byref(params), None) == 0
    assert all(output[batch] == GUARD for output in outputs)
    token_ids, past_length, chosen = (output[:batch] for output in outputs)
    return token_ids, past_length, chosen


@pytest.mark.parametrize("vocab", [1, 2, 511, 512, 513, 1025, 92553])
@pytest.mark.parametrize("schedule", [0, 1, 7])
def test_the_likeliest_token_is_fed_back(library: ctypes.CDLL, vocab: int, schedule: int) -> None:
    library.simt_set_schedule(schedule)
    logits = np.random.default_rng(vocab).standard_normal((3, vocab)).astype(np.float32)
    token_ids, past_length, chosen = step(library, logits, [0, 5, 4095])
    np.testing.assert_array_equal(token_ids, logits.argmax(1))
    np.testing.assert_array_equal(chosen, token_ids)
    np.testing.assert_array_equal(past_length, [1, 6, 4096])


def test_among_equals_the_lowest_id_wins(library: ctypes.CDLL) -> None:
    library.simt_set_schedule(0)
    logits = np.zeros((4, 2000), np.float32)
    logits[1, [3, 515, 1999]] = 1.0
    logits[2] = -np.finfo(np.float32).max
    logits[3, 512:] = 2.0
    token_ids, _, _ = step(library, logits, [0] * 4)
    np.testing.assert_array_equal(token_ids, logits.argmax(1))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 700, 1023])
def test_logits_that_are_not_finite_are_told(library: ctypes.CDLL, bad: float, place: int) -> None:
    library.simt_set_schedule(0)
    logits = np.random.default_rng(0).standard_normal((2, 1024)).astype(np.float32)
    logits[1, place] = bad
    token_ids, past_length, chosen = step(library, logits, [9, 9])
    assert chosen.tolist() == [int(logits[0].argmax()), -1]
    assert token_ids[1] == 0 and past_length.tolist() == [10, 10]


def test_what_the_header_does_not_allow_is_refused(library: ctypes.CDLL) -> None:
    numbers = np.zeros(8, np.int64)
    pointer = numbers.ctypes.data
    good = dict.fromkeys(("logits", "token_ids", "past_length", "chosen"), pointer) | {"batch": 1, "vocab": 4}
    bad = [{name: None} for name in ("logits", "token_ids", "past_length", "chosen")]
    bad += [{"batch": 0}, {"batch": 65536}, {"vocab": 0}, {"vocab": 2**31}]
    for change in bad:
        params = GreedyStepParams(**{**good, **change})
        assert library.va_greedy_step_launch(ctypes.byref(params), None) == 1, change
    other_layout = GreedyStepParams(**good)
    other_layout.struct_bytes -= 8
    assert library.va_greedy_step_launch(ctypes.byref(other_layout), None) == 1
    assert library.va_greedy_step_launch(None, None) == 1


def test_an_older_library_has_no_greedy_step() -> None:
    assert bind(ctypes.CDLL(None)) is None
