"""Opening a bundle and asking it: answers, gains, limits, and arguments that do not fit."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from msgspec import structs
from refusals import refused
from resealing import rewrite

from va_export.anchor import alpha_k_for_target_share, gains_from_score, subspace_score
from va_export.errors import VaExportError
from va_export.runtime.bundle import Bundle
from va_export.settings import ScoreSettings

Arrays = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Iterator[Bundle]:
    with Bundle.open(tiny_bundle, check_hashes=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def question(bundle: Bundle) -> Arrays:
    """Four frames of noise and a question about them."""
    pixels = np.random.default_rng(0).normal(size=(4, 3, 112, 112)).astype(np.float32)
    return {"pixel_values": pixels, "input_ids": bundle.prompt("What moves?", 4)}


def test_an_answer_and_what_led_to_it(bundle: Bundle, question: Arrays) -> None:
    told: list[int] = []
    result = bundle.generate(**question, max_new_tokens=5, ignore_stop=True, return_logits=True, on_token=told.append)
    assert result.tokens.shape == (5,) and told == result.tokens.tolist()
    assert result.logits is not None and result.logits.shape == (5, 263)
    assert result.logits.argmax(-1).tolist() == told
    assert result.visual_tokens is not None and result.visual_tokens.shape == (64, 128)
    assert result.sharing_score is not None and result.labels is not None
    assert result.sharing_score.min() == 0 and 0.99 < result.sharing_score.max() <= 1
    assert len(set(result.labels.tolist())) == 4
    assert set(result.timings) == {"vision", "score", "prefill", "decode", "total"}
    stages = sum(value for stage, value in result.timings.items() if stage != "total")
    assert 0 < stages <= result.timings["total"]


def test_the_same_question_has_the_same_answer(bundle: Bundle, question: Arrays) -> None:
    first, second = (bundle.generate(**question, max_new_tokens=3, return_logits=True) for _ in range(2))
    np.testing.assert_array_equal(first.logits, second.logits)


def test_a_flat_prompt_is_a_batch_of_one(bundle: Bundle, question: Arrays) -> None:
    flat = {**question, "input_ids": question["input_ids"][0].tolist()}
    one, other = (bundle.generate(**given, max_new_tokens=2, return_logits=True) for given in (question, flat))
    np.testing.assert_array_equal(one.logits, other.logits)


def test_a_stop_id_ends_the_answer(bundle: Bundle, question: Arrays) -> None:
    free = bundle.generate(**question, max_new_tokens=6, ignore_stop=True)
    stop = int(free.tokens[2])
    first = free.tokens.tolist().index(stop)
    processing = bundle.processing
    bundle.processing = msgspec.structs.replace(processing, stop_token_ids=(stop,))
    try:
        stopped = bundle.generate(**question, max_new_tokens=6)
        forced = bundle.generate(**question, forced_tokens=free.tokens)
    finally:
        bundle.processing = processing
    assert stopped.tokens.tolist() == free.tokens.tolist()[: first + 1]
    assert forced.tokens.tolist() == free.tokens.tolist()


def test_forced_tokens_are_fed_back(bundle: Bundle, question: Arrays) -> None:
    free = bundle.generate(**question, max_new_tokens=4, ignore_stop=True, return_logits=True)
    same = bundle.generate(**question, forced_tokens=free.tokens, return_logits=True)
    np.testing.assert_array_equal(same.logits, free.logits)
    other = bundle.generate(**question, forced_tokens=[1, 2, 3, 4], return_logits=True)
    assert free.logits is not None and other.logits is not None and other.tokens.tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(other.logits[0], free.logits[0])
    assert np.abs(other.logits[1] - free.logits[1]).max() > 0.01


def test_given_gains_are_the_scored_ones_written_out(bundle: Bundle, question: Arrays) -> None:
    scored = bundle.generate(
        **question, max_new_tokens=2, ignore_stop=True, return_logits=True, alpha_k=3.0, alpha_v=1.5
    )
    ids = question["input_ids"]
    log_gain, gain = gains_from_score(
        scored.sharing_score,
        ids[0] == 262,
        ids.shape[1],
        alpha_k=3.0,
        alpha_v=1.5,  # type: ignore[type-var]
    )
    given = bundle.generate(
        **question, max_new_tokens=2, ignore_stop=True, return_logits=True, key_log_gain=log_gain, value_gain=gain
    )
    np.testing.assert_array_equal(given.logits, scored.logits)
    assert given.sharing_score is None  # it was not needed


def test_automatic_settings_are_found_by_the_bundle(bundle: Bundle, question: Arrays) -> None:
    before = bundle.gains, bundle.score_settings
    bundle.gains = structs.replace(bundle.gains, target_visual_share=0.6, plain_visual_share=0.3)
    bundle.score_settings = structs.replace(bundle.score_settings, n_subspaces=ScoreSettings.AUTOMATIC)
    try:
        found = bundle.generate(**question, max_new_tokens=1, return_logits=True)
        assert found.sharing_score is not None and found.visual_tokens is not None
        alpha = alpha_k_for_target_share(found.sharing_score, 0.3, 0.6)
        given = bundle.generate(**question, max_new_tokens=1, return_logits=True, alpha_k=alpha)
    finally:
        bundle.gains, bundle.score_settings = before
    np.testing.assert_array_equal(found.sharing_score, subspace_score(found.visual_tokens, "auto"))
    np.testing.assert_array_equal(found.logits, given.logits)
    plain = bundle.generate(**question, max_new_tokens=1, return_logits=True)
    assert found.logits is not None and plain.logits is not None
    assert np.abs(found.logits - plain.logits).max() > 0


def test_a_prompt_of_text_alone(bundle: Bundle) -> None:
    ids = np.arange(1, 20)
    result = bundle.generate(input_ids=ids, max_new_tokens=3, ignore_stop=True, return_logits=True)
    plain = bundle.generate(input_ids=ids, max_new_tokens=3, ignore_stop=True, return_logits=True, anchors=False)
    assert result.visual_tokens is None and result.sharing_score is None and "score" not in result.timings
    np.testing.assert_array_equal(result.logits, plain.logits)


def test_a_prompt_of_one_token(bundle: Bundle) -> None:
    result = bundle.generate(input_ids=[5], max_new_tokens=1, return_logits=True)
    assert result.logits is not None and np.isfinite(result.logits).all()


def test_cached_steps_equal_one_long_prefill(bundle: Bundle, question: Arrays) -> None:
    """Token by token with the cache, or everything at once: the same last logits, without anchors."""
    steps = bundle.generate(**question, max_new_tokens=4, ignore_stop=True, return_logits=True, anchors=False)
    assert steps.logits is not None
    longer = np.concatenate([question["input_ids"][0], steps.tokens[:3]])
    at_once = bundle.generate(question["pixel_values"], longer, max_new_tokens=1, return_logits=True, anchors=False)
    assert at_once.logits is not None
    scale = np.abs(steps.logits[3]).max()
    assert np.abs(at_once.logits[0] - steps.logits[3]).max() < 0.01 * scale  # float16


@pytest.mark.parametrize(("change", "where", "named"), [
    ({"input_ids": None}, "input_ids", []),
    ({"input_ids": []}, "input_ids", [(0,)]),
    ({"input_ids": np.zeros((2, 9), int)}, "input_ids", [(2, 9)]),
    ({"input_ids": [[[1]]]}, "input_ids", [(1, 1, 1)]),
    ({"input_ids": [1.5, 2]}, "input_ids", ["float64"]),
    ({"input_ids": ["a"]}, "input_ids", ["U1"]),
    ({"input_ids": [1, -1]}, "input_ids", [263]),
    ({"input_ids": [1, 263]}, "input_ids", [263]),
    ({"input_ids": [262] * 63 + [1]}, "generate", [63, 262, 64]),
    ({"input_ids": [262] * 65}, "generate", [65, 262, 64]),
    ({"input_ids": [1, 2, 3]}, "generate", [0, 262, 64]),
    ({"input_ids": [262] * 64 + [1] * 1984}, "generate", [2048]),
    ({"max_new_tokens": 2000}, "generate", [2000]),
    ({"max_new_tokens": 0}, "max_new_tokens", [0]),
    ({"forced_tokens": []}, "forced_tokens", [(0,)]),
    ({"forced_tokens": [263]}, "forced_tokens", [263]),
    ({"pixel_values": None}, "generate", [64, 262]),
    ({"pixel_values": np.zeros((4, 3, 224, 224))}, "pixel_values", [(4, 3, 224, 224), 112]),
    ({"pixel_values": np.zeros((3, 112, 112))}, "pixel_values", [(3, 112, 112)]),
    ({"pixel_values": np.zeros((0, 3, 112, 112))}, "pixel_values", [(0, 3, 112, 112)]),
    ({"pixel_values": np.zeros((17, 3, 112, 112))}, "frames", [17, 16]),
    ({"pixel_values": np.full((4, 3, 112, 112), np.nan)}, "pixel_values", ["NaN"]),
    ({"pixel_values": "frames"}, "pixel_values", ["U6"]),
    ({"alpha_k": -2.0}, "alpha_k", [-2.0]),
    ({"alpha_v": float("nan")}, "alpha_v", ["nan"]),
    ({"key_log_gain": np.zeros(3)}, "key_log_gain", [(3,)]),
    ({"value_gain": np.ones(3)}, "value_gain", [(3,)]),
    ({"value_gain": "loud"}, "value_gain", ["U4"]),
    ({"anchors": False, "alpha_k": 1.0}, "generate", ["anchors=False"]),
    ({"anchors": False, "value_gain": np.ones(3)}, "generate", ["anchors=False"]),
])  # fmt: skip
def test_arguments_that_do_not_fit(
    bundle: Bundle, question: Arrays, change: dict[str, Any], where: str, named: list[object]
) -> None:
    with refused(where, *named):
        bundle.generate(**{**question, **change})


@pytest.mark.parametrize("ids", [[[263]], [[-1]], [[1.5]], [[]]])
def test_a_prepared_prompt_whose_ids_are_none(bundle: Bundle, ids: Any) -> None:
    """As a tokenizer would give them that belongs to another model."""
    prepared = dataclasses.replace(bundle.processing.prepare_ids(np.array([[1]]), {}, 1), input_ids=np.array(ids))
    with pytest.raises(VaExportError) as caught:
        bundle.answer(prepared, 1)
    assert caught.value.where == "input_ids"


@pytest.mark.parametrize(
    ("name", "value"), [("key_log_gain", np.nan), ("key_log_gain", np.inf), ("value_gain", -np.inf)]
)
def test_gains_that_are_not_finite(bundle: Bundle, question: Arrays, name: str, value: float) -> None:
    gains = np.zeros(question["input_ids"].shape[1])
    gains[3] = value
    with refused(name, "NaN"):
        bundle.generate(**question, **{name: gains})


def test_visual_tokens_that_overflowed(bundle: Bundle, question: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    def overflowed(component: str, inputs: Arrays) -> Arrays:
        tokens = np.zeros((16 * len(inputs["pixel_values"]), 128), np.float32)
        tokens[3, 5] = np.inf
        return {"visual_tokens": tokens}

    monkeypatch.setattr(bundle.backend, "run", overflowed)
    with refused("generate", "vision", 1, 8192, "fp16") as caught:
        bundle.generate(**question)
    assert caught.value.fix is not None and "bf16" in caught.value.fix


def test_a_key_may_be_removed(bundle: Bundle, question: Arrays) -> None:
    log_gain, gain = np.zeros(question["input_ids"].shape[1]), np.ones(question["input_ids"].shape[1])
    log_gain[40] = -np.inf
    result = bundle.generate(**question, max_new_tokens=1, key_log_gain=log_gain, value_gain=gain, return_logits=True)
    assert result.logits is not None and np.isfinite(result.logits).all()


def test_unknown_placeholders_are_told_by_their_number(golden_bundle: Callable[[str], Path], golden: Arrays) -> None:
    with Bundle.open(golden_bundle("fp32")) as bundle:
        assert bundle.processing.image_token_id is None
        ids = golden["input_ids"].copy()
        ids[ids == 999] = 998  # another id serves as well
        assert (bundle.generate(golden["pixel_values"], ids, max_new_tokens=1).visual_tokens) is not None
        ids[0, 20] = 5
        with refused("generate", 128) as caught:
            bundle.generate(golden["pixel_values"], ids, max_new_tokens=1)
        assert caught.value.fix is not None and "--image-token-id" in caught.value.fix


def test_external_data_that_leaves_the_bundle_is_refused(copied_bundle: Path) -> None:
    (copied_bundle.parent / "outside.data").write_bytes(bytes(1 << 20))
    model = onnx.load(copied_bundle / "onnx" / "vision.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../outside.data"
    rewrite(copied_bundle, "onnx/vision.onnx", model.SerializeToString())
    for backend in ("onnxruntime", "torch"):
        with refused(Path("onnx/vision.onnx"), "../../outside.data"):
            Bundle.open(copied_bundle, backend).backend.run(
                "vision", {"pixel_values": np.zeros((1, 3, 112, 112), np.float32)}
            )


@pytest.mark.parametrize("key", ["onnx", "onnx_native"])
def test_a_component_that_leaves_the_bundle_is_refused(copied_bundle: Path, key: str) -> None:
    shutil.copyfile(copied_bundle / "onnx" / "decoder.onnx", copied_bundle.parent / "evil.onnx")
    path = copied_bundle / "manifest.json"
    data = json.loads(path.read_text())
    data["components"]["decoder"][key] = "../evil.onnx"
    path.write_text(json.dumps(data))
    attention = "native" if key == "onnx_native" else "plugin"
    with Bundle.open(copied_bundle, attention=attention) as bundle, refused(path, "../evil.onnx"):
        bundle.generate(input_ids=[1, 2], max_new_tokens=1)


def test_a_changed_byte_is_found_when_asked_for(copied_bundle: Path) -> None:
    path = copied_bundle / "onnx" / "decoder.onnx.data"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(bytes(content))
    Bundle.open(copied_bundle).close()
    with refused(copied_bundle, "onnx/decoder.onnx.data"):
        Bundle.open(copied_bundle, check_hashes=True)
    path.write_bytes(bytes(content[:-1]))
    with refused(copied_bundle, len(content) - 1, len(content)):
        Bundle.open(copied_bundle)


@pytest.mark.parametrize(("name", "content"), [
    ("processing.json", b"{"),
    ("processing.json", b"{}"),
    ("tokenizer.json", b"{}"),
])  # fmt: skip
def test_settings_that_are_broken(copied_bundle: Path, name: str, content: bytes) -> None:
    rewrite(copied_bundle, name, content)
    with refused(copied_bundle / name):
        Bundle.open(copied_bundle)


@pytest.mark.parametrize(("component", "tensor"), [("embedding", "visual_tokens"), ("decoder", "position_ids")])
@pytest.mark.parametrize("change", [{"name": "another"}, {"shape": []}, {"shape": ["a", "b", "c"]}])
def test_sizes_that_the_manifest_should_say_are_asked_for(
    component: str, tensor: str, change: dict[str, object], copied_bundle: Path
) -> None:
    path = copied_bundle / "manifest.json"
    data = json.loads(path.read_text())
    inputs = data["components"][component]["inputs"]
    next(entry for entry in inputs if entry["name"] == tensor).update(change)
    path.write_text(json.dumps(data))
    with Bundle.open(copied_bundle) as opened, refused(f"manifest.json: components.{component}.inputs", tensor):
        opened.generate(input_ids=[[1, 2]], max_new_tokens=1)


@pytest.mark.parametrize("key", ["limits", "gains", "score"])
def test_tables_of_the_manifest_are_checked(copied_bundle: Path, key: str) -> None:
    path = copied_bundle / "manifest.json"
    data = json.loads(path.read_text())
    data[key]["surprise"] = 1
    path.write_text(json.dumps(data))
    with pytest.raises(VaExportError) as caught:
        Bundle.open(copied_bundle)
    assert str(caught.value.where) == f"{copied_bundle / 'manifest.json'}: {key}"
