"""Every argument of `Bundle` with what it does not take: refused by name, and nothing is answered."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from refusals import refused
from synthetic_manifest import component_entry

from va_export import Bundle, VaExportError
from va_export.bundle.tensors import DimensionRange, TensorInfo
from va_export.runtime.arguments import check_ranges

Arrays = Mapping[str, Any]
PIXELS = np.random.default_rng(3).uniform(-1, 1, (2, 3, 112, 112)).astype(np.float32)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Iterator[Bundle]:
    with Bundle.open(tiny_bundle) as opened:
        yield opened


@pytest.fixture(scope="module")
def question(bundle: Bundle) -> Arrays:
    return {"pixel_values": PIXELS, "input_ids": bundle.prompt("What moves?", 2), "max_new_tokens": 3}


WRONG: Mapping[str, list[Any]] = {
    "pixel_values": [
        np.zeros((2, 3, 112, 112), np.uint8), np.zeros((2, 3, 112, 112), np.int64), np.zeros((2, 3, 112, 112), bool),
        np.zeros((2, 3, 112, 112), complex), np.zeros((2, 3, 112, 112), object), np.full((2, 3, 112, 112), 255.0),
        np.full((2, 3, 112, 112), 1e300), np.zeros((2, 3, 112, 112), "datetime64[s]"), np.ma.masked_array(PIXELS),
        np.zeros((112, 112)), 0.5, "clip.mp4", b"clip.mp4", [PIXELS, None], object(), {}, [[1.0], [1.0, 2.0]],
        torch.zeros(2, 3, 112, 112, requires_grad=True), torch.zeros(2, 3, 112, 112, dtype=torch.bfloat16),
    ],
    "input_ids": [
        7, [], [[]], [[1], [2]], [[1, 2], [3]], [1.0], [True], ["1"], "1", b"1", None, [None], object(), {1}, [2**70],
        [-1], [np.nan], np.array([2**63], np.uint64), np.array([1], object), torch.zeros(3, device="meta"),
    ],
    "forced_tokens": [7, [], [[1, 2], [3, 4]], [1.0], ["a"], [10**6], "1", [True], {}],
    "max_new_tokens": [0, -1, 2.0, 2.5, "4", None, True, np.float32(4), np.array([4]), [4], float("nan"), 4 + 0j],
    "alpha_k": [float("nan"), float("inf"), -1.5, 1e4, 10**400, "9.5", True, np.bool_(True), 1 + 0j, [1.0], np.ones(2)],
    "alpha_v": [np.float64("nan"), -np.inf, -5, 1e300, "2.5", False, b"1", {}],
    "key_log_gain": ["loud", 1.0, [0.0], [[0.0]], np.zeros(3, bool), object(), np.zeros(3, complex)],
    "value_gain": ["loud", 1.0, [1.0], np.ones((2, 2)), [None], object()],
    "anchors": [None, 1, "no", np.array([True, False])],
    "ignore_stop": [None, 0, "yes", []],
    "return_logits": [None, 1, "yes", {}],
    "on_token": [1, "print", True],
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_generate_refuses_by_name(bundle: Bundle, question: Arrays, name: str) -> None:
    for value in WRONG[name]:
        with pytest.raises(VaExportError) as caught:
            bundle.generate(**{**question, name: value})
        assert (caught.value.where, bool(caught.value.fix)) == (name, True), value


@pytest.mark.parametrize(("alpha", "gains"), [("alpha_k", "key_log_gain"), ("alpha_v", "value_gain")])
def test_an_alpha_beside_the_gains_that_it_would_make(bundle: Bundle, question: Arrays, alpha: str, gains: str) -> None:
    with pytest.raises(VaExportError) as caught:
        bundle.generate(**question, **{alpha: 1.0, gains: np.zeros(question["input_ids"].size)})
    assert caught.value.where == alpha


def test_other_forms_of_the_same_values_give_the_same_answer(bundle: Bundle, question: Arrays) -> None:
    expected = bundle.generate(**question, alpha_k=2).tokens.tolist()
    length = question["input_ids"].size
    halves = PIXELS.astype(ml_dtypes.bfloat16)
    for change in (
        {"pixel_values": PIXELS.astype(np.float64)},
        {"pixel_values": np.asfortranarray(PIXELS)},
        {"pixel_values": torch.from_numpy(PIXELS)},
        {"input_ids": question["input_ids"][0].tolist()},
        {"input_ids": question["input_ids"].astype(np.uint16)},
        {"max_new_tokens": np.uint8(3), "alpha_k": np.float16(2), "anchors": np.bool_(True)},
    ):
        assert bundle.generate(**{**question, "alpha_k": 2, **change}).tokens.tolist() == expected, change
    as_halves = bundle.generate(**{**question, "pixel_values": halves}).tokens.tolist()
    assert as_halves == bundle.generate(**{**question, "pixel_values": halves.astype(np.float32)}).tokens.tolist()
    whole = bundle.generate(**question, key_log_gain=[0] * length, value_gain=[[1] * length]).tokens.tolist()
    assert whole == bundle.generate(**question, anchors=False).tokens.tolist()


def test_what_on_token_raises_goes_through(bundle: Bundle, question: Arrays) -> None:
    def fails(token: int) -> None:
        raise LookupError(token)

    with pytest.raises(LookupError):
        bundle.generate(**question, on_token=fails)


@pytest.mark.parametrize(("where", "arguments"), [
    *(("question", (value, 2)) for value in (None, 5, b"hi", ["hi"], "a\ud800b", "caf\udce9", np.str_("\udcff"))),
    *(("n_frames", ("hi", value)) for value in (-1, 2.0, None, "2", True, [2])),
    *(("frames", ("hi", value)) for value in (17, 10**12)),
])  # fmt: skip
def test_prompt_refuses_by_name(bundle: Bundle, where: str, arguments: tuple[Any, Any]) -> None:
    with pytest.raises(VaExportError) as caught:
        bundle.prompt(*arguments)
    assert caught.value.where == where


@pytest.mark.parametrize(("name", "value"), [
    *(("path", value) for value in (None, 3, "", "a\0b", ["a"])),
    *(("backend", value) for value in (None, "cuda", 1, [], b"torch")),
    *(("attention", value) for value in ("flash", "", 1, [], True)),
    *(("score", value) for value in ("gpu", "", 1, {}, False)),
    *(("devices", value) for value in ("0,1", 0, [], [-1], [0.0], [True], [0, 0], [None], ["0"])),
    *(("score_cache", value) for value in (1, "", object())),
    *(("check_hashes", value) for value in (None, 1, "yes")),
])  # fmt: skip
def test_open_refuses_by_name(tiny_bundle: Path, name: str, value: Any) -> None:
    with pytest.raises(VaExportError) as caught:
        Bundle.open(**{"path": tiny_bundle, name: value})
    assert caught.value.where == name


def test_a_form_of_attention_that_the_backend_would_not_run(tiny_bundle: Path) -> None:
    for backend in ("torch", "tensorrt-rtx"):
        with pytest.raises(VaExportError) as caught:
            Bundle.open(tiny_bundle, backend, attention="native")
        assert caught.value.where == "attention"


def test_a_relative_path_stays_the_same_bundle(
    tiny_bundle: Path, tmp_path: Path, question: Arrays, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_bundle.parent)
    with Bundle.open(tiny_bundle.name, score_cache=os.path.relpath(tmp_path / "scores")) as opened:
        monkeypatch.chdir(tmp_path)
        answer = opened.generate(**question).tokens.tolist()
        assert opened.default_frames == bundle.default_frames
    assert answer == bundle.generate(**question).tokens.tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["scores"]


def test_a_path_in_bytes_is_a_path(tiny_bundle: Path) -> None:
    with Bundle.open(os.fsencode(tiny_bundle)) as opened:  # type: ignore[arg-type]
        assert opened.manifest.directory == tiny_bundle


def test_a_bundle_that_is_closed_or_elsewhere(tiny_bundle: Path, question: Arrays) -> None:
    opened = Bundle.open(tiny_bundle)
    for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(VaExportError):
            duplicate(opened)
    opened.close()
    opened.close()
    with pytest.raises(VaExportError):
        opened.generate(**question)


def test_inputs_of_another_fixed_size_are_refused_with_both_shapes() -> None:
    """A processing.json that belongs to other graphs."""
    taken = TensorInfo("pixel_values", "float32", ("frames", 3, 112, 112))
    ranges = {"run": {"frames": DimensionRange(1, 8, 16)}}
    vision = component_entry("vision", inputs=(taken,), ranges=ranges)
    check_ranges(vision, {"pixel_values": np.zeros((2, 3, 112, 112), np.float32)})
    with refused("generate", "[2, 3, 113, 113]", "['frames', 3, 112, 112]"):
        check_ranges(vision, {"pixel_values": np.zeros((2, 3, 113, 113), np.float32)})
    with refused("generate", 17, 16):
        check_ranges(vision, {"pixel_values": np.zeros((17, 3, 112, 112), np.float32)})
