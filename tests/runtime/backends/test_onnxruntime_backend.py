"""The ONNX Runtime backend: both forms of the decoder, its cache, and what it cannot open."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from refusals import refused
from resealing import rewrite

from va_export.bundle.manifest import Manifest, read_manifest
from va_export.errors import VaExportError
from va_export.runtime.backends.onnxruntime import OnnxRuntimeBackend
from va_export.runtime.bundle import Bundle

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return read_manifest(tiny_bundle)


@pytest.fixture(scope="module", params=["plugin", "native"])
def backend(manifest: Manifest, request: pytest.FixtureRequest) -> Iterator[OnnxRuntimeBackend]:
    opened = OnnxRuntimeBackend(manifest, request.param)
    yield opened
    opened.close()


def vision(backend: Any, pixels: Array) -> Array:
    """Visual tokens of frames."""
    tokens: Array = backend.run("vision", {"pixel_values": pixels})["visual_tokens"]
    return tokens


def embed(backend: OnnxRuntimeBackend, ids: Array, is_visual: Array, tokens: Array) -> Array:
    """Input embeddings."""
    given = {"input_ids": ids, "is_visual": is_visual, "visual_tokens": tokens}
    return backend.run("embedding", given)["inputs_embeds"]


def decode(
    backend: OnnxRuntimeBackend,
    embeds: Array,
    gains: tuple[Array, Array],
    cache: Any,
    past: int = 0,
    positions: Array | None = None,
) -> Array:
    """Logits after embeddings (B, S, D) in the slots from `past` on, at the positions of the slots unless others are
    given, (S,)."""
    batch, length, _ = embeds.shape
    counted = np.arange(past, past + length) if positions is None else positions
    position_ids = np.tile(counted, (1, batch, 1))
    return backend.decode(embeds, position_ids, *gains, np.full(batch, past), cache)


def plain(batch: int, capacity: int = 64) -> tuple[Array, Array]:
    """Gains that change nothing."""
    return np.zeros((batch, capacity), np.float32), np.ones((batch, capacity), np.float32)


def test_vision_gives_16_tokens_a_frame(backend: OnnxRuntimeBackend) -> None:
    pixels = np.random.default_rng(1).normal(size=(3, 3, 112, 112)).astype(np.float32)
    together = vision(backend, pixels)
    assert together.shape == (48, 128) and together.dtype == np.float32
    alone = np.concatenate([vision(backend, pixels[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(together, alone, atol=5e-3)  # frames do not see each other


def test_visual_tokens_replace_the_placeholders_in_order(backend: OnnxRuntimeBackend) -> None:
    ids = np.array([[5, 262, 7, 262], [262, 9, 262, 262]])
    tokens = np.random.default_rng(2).normal(size=(5, 128)).astype(np.float32)
    embeds = embed(backend, ids, ids == 262, tokens)
    without = embed(backend, ids, np.zeros_like(ids, np.bool_), tokens)
    assert embeds.shape == (2, 4, 128)
    np.testing.assert_allclose(embeds[ids == 262], tokens, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(embeds[ids != 262], without[ids != 262])


def test_a_prompt_in_two_pieces_is_the_same_prompt(backend: OnnxRuntimeBackend) -> None:
    embeds = np.random.default_rng(3).normal(size=(1, 10, 128)).astype(np.float32)
    whole = decode(backend, embeds, plain(1), backend.new_cache(1, 64))
    cache = backend.new_cache(1, 64)
    decode(backend, embeds[:, :6], plain(1), cache)
    rest = decode(backend, embeds[:, 6:], plain(1), cache, past=6)
    np.testing.assert_allclose(rest, whole, atol=2e-2 * np.abs(whole).max())


def test_rows_of_a_batch_do_not_see_each_other(backend: OnnxRuntimeBackend) -> None:
    random = np.random.default_rng(4)
    embeds = random.normal(size=(2, 5, 128)).astype(np.float32)
    log_gain = random.uniform(0, 2, size=(2, 64)).astype(np.float32)
    gain = random.uniform(1, 3, size=(2, 64)).astype(np.float32)
    both = decode(backend, embeds, (log_gain, gain), backend.new_cache(2, 64))
    for row in range(2):
        only = slice(row, row + 1)
        alone = decode(backend, embeds[only], (log_gain[only], gain[only]), backend.new_cache(1, 64))
        np.testing.assert_allclose(both[only], alone, atol=2e-2 * np.abs(alone).max())


def test_unused_slots_do_not_matter(backend: OnnxRuntimeBackend) -> None:
    embeds = np.random.default_rng(5).normal(size=(1, 4, 128)).astype(np.float32)
    results = []
    for capacity, filler in ((64, 0.0), (64, 50.0), (192, 0.0)):
        log_gain, gain = np.full((1, capacity), filler, np.float32), np.full((1, capacity), 1 + filler, np.float32)
        log_gain[:, :4], gain[:, :4] = 0, 1
        results.append(decode(backend, embeds, (log_gain, gain), backend.new_cache(1, capacity)))
    np.testing.assert_allclose(results[1], results[0], atol=2e-2 * np.abs(results[0]).max())
    np.testing.assert_allclose(results[2], results[0], atol=2e-2 * np.abs(results[0]).max())


def test_slots_and_positions_are_two_things(backend: OnnxRuntimeBackend) -> None:
    """The same tokens at positions with gaps, wherever the slots are; and other positions give other logits."""
    embeds = np.random.default_rng(6).normal(size=(1, 8, 128)).astype(np.float32)
    positions = np.array([0, 2, 3, 40, 41, 42, 300, 301])
    whole = decode(backend, embeds, plain(1), backend.new_cache(1, 64), positions=positions)
    cache = backend.new_cache(1, 64)
    decode(backend, embeds[:, :7], plain(1), cache, positions=positions[:7])
    last = decode(backend, embeds[:, 7:], plain(1), cache, past=7, positions=positions[7:])
    np.testing.assert_allclose(last, whole, atol=2e-2 * np.abs(whole).max())
    counted = decode(backend, embeds, plain(1), backend.new_cache(1, 64))
    assert np.abs(counted - whole).max() > 0.1 * np.abs(whole).max()


def test_a_row_of_a_cache_is_the_same_memory(backend: OnnxRuntimeBackend) -> None:
    """What is written through a row is in the whole cache, in that row and in no other; and the other way round."""
    embeds = np.random.default_rng(7).normal(size=(1, 5, 128)).astype(np.float32)
    cache = backend.new_cache(3, 64)
    decode(backend, embeds, plain(1), backend.cache_row(cache, 1))
    arrays = [value.array for values in cache.values() for value in values]
    assert len(arrays) == 4  # two layers' keys and values
    for array in arrays:
        assert array is not None and array.shape[0] == 3
        assert array[1, :, :5].any(axis=(0, 2)).all() and not array[1, :, 5:].any()
        assert not array[0].any() and not array[2].any()
    alone = backend.new_cache(1, 64)
    decode(backend, embeds, plain(1), alone)
    for array, value in zip(arrays, alone["decoder"], strict=True):
        assert array is not None and value.array is not None
        np.testing.assert_array_equal(array[1:2], value.array)
    # ONNX Runtime reads the whole cache where the row was written: all three rows step on, row 1 behind its prompt.
    step = np.random.default_rng(8).normal(size=(3, 1, 128)).astype(np.float32)
    past = np.array([0, 5, 0])
    together = backend.decode(step, past[None, :, None], *plain(3), past, cache)
    expected = decode(backend, step[1:2], plain(1), alone, past=5)
    np.testing.assert_allclose(together[1:2], expected, atol=2e-2 * np.abs(expected).max())
    row = backend.cache_row(cache, 1)["decoder"][0].value.numpy()
    np.testing.assert_array_equal(row, cache["decoder"][0].value.numpy()[1:2])
    assert row[0, :, 5].any()


def test_the_cache_is_as_large_as_needed(backend: OnnxRuntimeBackend) -> None:
    assert [backend.cache_capacity(needed, 200) for needed in (1, 64, 65, 190, 200)] == [64, 64, 128, 192, 200]


def test_a_graph_that_onnxruntime_cannot_open(copied_bundle: Path) -> None:
    model = onnx.load(copied_bundle / "onnx" / "vision.onnx", load_external_data=False)
    model.graph.node[0].op_type = "NoSuchOperator"
    rewrite(copied_bundle, "onnx/vision.onnx", model.SerializeToString())
    with Bundle.open(copied_bundle) as bundle, refused("onnx/vision.onnx", "vision", "NoSuchOperator") as caught:
        vision(bundle.backend, np.zeros((1, 3, 112, 112), np.float32))
    assert caught.value.fix == "verify the bundle with va-check, or export it again"


def test_bfloat16_is_refused_on_the_cpu(copied_bundle: Path) -> None:
    path = copied_bundle / "manifest.json"
    data = json.loads(path.read_text())
    data["precision"] = "bf16"
    path.write_text(json.dumps(data))
    with refused(copied_bundle) as caught:
        Bundle.open(copied_bundle)
    assert caught.value.fix is not None and "--backend torch" in caught.value.fix


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with refused("backend onnxruntime"):
        Bundle.open(tiny_bundle)


def test_unknown_backends_and_forms_that_are_not_there(tiny_bundle: Path) -> None:
    with refused("backend", "tpu"):
        Bundle.open(tiny_bundle, "tpu")
    with refused(tiny_bundle, "tensorrt", "vision"):
        Bundle.open(tiny_bundle, "tensorrt")


def test_a_graph_that_opens_and_does_not_run(copied_bundle: Path) -> None:
    with Bundle.open(copied_bundle) as bundle, pytest.raises(VaExportError) as caught:
        bundle.backend.run("embedding", {"input_ids": np.zeros((1, 1, 1, 1), np.int64)})
    assert caught.value.where is not None


def test_a_damaged_graph_prints_nothing(copied_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ONNX Runtime's own second try does, where its error message quotes bytes that are no UTF-8."""
    path = copied_bundle / "onnx" / "embedding.onnx"
    model = onnx.load(path, load_external_data=False)
    content = model.SerializeToString().replace(model.graph.node[0].op_type.encode(), b"\xb1" * 4, 1)
    rewrite(copied_bundle, "onnx/embedding.onnx", content)
    with Bundle.open(copied_bundle) as bundle, pytest.raises(VaExportError):
        bundle.backend.run("embedding", {"input_ids": np.zeros((1, 1), np.int64)})
    assert capsys.readouterr().out == ""


def test_a_graph_that_gives_something_else(copied_bundle: Path) -> None:
    """A runtime takes its outputs by the names and shapes that the manifest says."""
    model = onnx.load(copied_bundle / "onnx" / "embedding.onnx", load_external_data=False)
    (output,) = model.graph.output
    inputs = {
        "input_ids": np.zeros((1, 2), np.int64),
        "is_visual": np.zeros((1, 2), bool),
        "visual_tokens": np.zeros((1, 128), np.float32),
    }
    for kind, name in (("Identity", "other"), ("Squeeze", output.name)):
        other = onnx.ModelProto()
        other.CopyFrom(model)
        producer = next(node for node in other.graph.node if output.name in node.output)
        producer.output[list(producer.output).index(output.name)] = "before"
        other.graph.node.append(onnx.helper.make_node(kind, ["before"], [name]))
        other.graph.output[0].CopyFrom(
            onnx.helper.make_tensor_value_info(name, output.type.tensor_type.elem_type, None)
        )
        rewrite(copied_bundle, "onnx/embedding.onnx", other.SerializeToString())
        with Bundle.open(copied_bundle) as bundle, pytest.raises(VaExportError) as caught:
            bundle.backend.run("embedding", inputs)
        assert output.name in caught.value.what
