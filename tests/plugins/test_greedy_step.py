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


def step(
    library: ctypes.CDLL, logits: np.ndarray[Any, Any], past: list[int], positions: list[list[int]] | None = None
) -> tuple[Any, Any, Any, Any]:
    """token_ids, past_length, position_ids (axes, batch) and chosen after one step."""
    batch, vocab = logits.shape
    given = np.array([past] if positions is None else positions, np.int64)
    outputs = [np.full(size + 1, GUARD, np.int64) for size in (batch, batch, given.size, batch)]
    outputs[1][:batch], outputs[2][: given.size] = past, given.reshape(-1)
    params = GreedyStepParams(
        logits=logits.ctypes.data,
        token_ids=outputs[0].ctypes.data,
        past_length=outputs[1].ctypes.data,
        position_ids=outputs[2].ctypes.data,
        chosen=outputs[3].ctypes.data,
        batch=batch,
        vocab=vocab,
        axes=len(given),
    )
    assert library.va_greedy_step_launch(ctypes.byref(params), None) == 0
    assert all(output[-1] == GUARD for output in outputs)
    token_ids, past_length, position_ids, chosen = (output[:-1] for output in outputs)
    return token_ids, past_length, position_ids.reshape(given.shape), chosen


@pytest.mark.parametrize("vocab", [1, 2, 511, 512, 513, 1025, 92553])
@pytest.mark.parametrize("schedule", [0, 1, 7])
def test_the_likeliest_token_is_fed_back(library: ctypes.CDLL, vocab: int, schedule: int) -> None:
    library.simt_set_schedule(schedule)
    logits = np.random.default_rng(vocab).standard_normal((3, vocab)).astype(np.float32)
    token_ids, past_length, _, chosen = step(library, logits, [0, 5, 4095])
    np.testing.assert_array_equal(token_ids, logits.argmax(1))
    np.testing.assert_array_equal(chosen, token_ids)
    np.testing.assert_array_equal(past_length, [1, 6, 4096])


@pytest.mark.parametrize("axes", [1, 3, 16])
@pytest.mark.parametrize("schedule", [0, 7])
def test_every_axis_counts_one_more_whatever_the_slot(library: ctypes.CDLL, axes: int, schedule: int) -> None:
    library.simt_set_schedule(schedule)
    positions = np.random.default_rng(axes).integers(0, 10_000, (axes, 3))
    logits = np.zeros((3, 700), np.float32)
    logits[2, 650] = np.nan  # a row whose logits are not finite is counted on, too
    _, past_length, position_ids, chosen = step(library, logits, [7, 0, 4095], positions.tolist())
    np.testing.assert_array_equal(position_ids, positions + 1)
    assert past_length.tolist() == [8, 1, 4096] and chosen.tolist() == [0, 0, -1]


def test_among_equals_the_lowest_id_wins(library: ctypes.CDLL) -> None:
    library.simt_set_schedule(0)
    logits = np.zeros((4, 2000), np.float32)
    logits[1, [3, 515, 1999]] = 1.0
    logits[2] = -np.finfo(np.float32).max
    logits[3, 512:] = 2.0
    token_ids, _, _, _ = step(library, logits, [0] * 4)
    np.testing.assert_array_equal(token_ids, logits.argmax(1))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 700, 1023])
def test_logits_that_are_not_finite_are_told(library: ctypes.CDLL, bad: float, place: int) -> None:
    library.simt_set_schedule(0)
    logits = np.random.default_rng(0).standard_normal((2, 1024)).astype(np.float32)
    logits[1, place] = bad
    token_ids, past_length, _, chosen = step(library, logits, [9, 9])
    assert chosen.tolist() == [int(logits[0].argmax()), -1]
    assert token_ids[1] == 0 and past_length.tolist() == [10, 10]


def test_what_the_header_does_not_allow_is_refused(library: ctypes.CDLL) -> None:
    numbers = np.zeros(8, np.int64)
    pointer = numbers.ctypes.data
    pointers = ("logits", "token_ids", "past_length", "position_ids", "chosen")
    good = dict.fromkeys(pointers, pointer) | {"batch": 1, "vocab": 4, "axes": 1}
    bad = [{name: None} for name in pointers]
    bad += [{"batch": 0}, {"batch": 65536}, {"vocab": 0}, {"vocab": 2**31}, {"axes": 0}, {"axes": 17}]
    for change in bad:
        params = GreedyStepParams(**{**good, **change})
        assert library.va_greedy_step_launch(ctypes.byref(params), None) == 1, change
    other_layout = GreedyStepParams(**good)
    other_layout.struct_bytes -= 8
    assert library.va_greedy_step_launch(ctypes.byref(other_layout), None) == 1
    assert library.va_greedy_step_launch(None, None) == 1


def test_an_older_library_has_no_greedy_step() -> None:
    assert bind(ctypes.CDLL(None)) is None
