from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from refusals import refused
from synthetic_decoder import DecoderShape, decoder_feed, numpy_decoder, save_decoder

from va_export.tensorrt.prepare_onnx import prepare_onnx


def _prepare(path: Path, attention: str = "plugin", capacity: int | None = 24, served: bool = True):  # type: ignore[no-untyped-def]
    return prepare_onnx(path, attention=attention, capacity=capacity, has_plugin=lambda _: served)  # type: ignore[arg-type]


def test_plugin_nodes_lose_their_body_and_name_their_plugin(tmp_path: Path) -> None:
    prepared = _prepare(save_decoder(DecoderShape(layers=3), tmp_path / "decoder.onnx"))
    model = onnx.load_model_from_string(prepared.model_bytes)
    nodes = [node for node in model.graph.node if node.domain == "ai.videoanchor"]
    assert len(nodes) == len(prepared.plugin_nodes) == 3
    assert len(model.functions) == 0
    for node in nodes:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes["plugin_version"] == b"1"
        assert attributes["plugin_namespace"] == b"ai.videoanchor"
        assert attributes["scale"] == 0.25


def test_weights_are_neither_read_nor_copied(tmp_path: Path) -> None:
    shape = DecoderShape(head_dim=128)
    path = save_decoder(shape, tmp_path / "decoder.onnx")
    data = tmp_path / "decoder.onnx.data"
    size = data.stat().st_size
    data.unlink()  # a read would fail
    prepared = _prepare(path)
    assert len(prepared.model_bytes) < 20_000 < size
    model = onnx.load_model_from_string(prepared.model_bytes)
    before = {t.name: t for t in onnx.load(path, load_external_data=False).graph.initializer}
    for tensor in model.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        expected = {entry.key: entry.value for entry in before[tensor.name].external_data}
        assert {key: entries[key] for key in ("location", "offset", "length")} == expected


def test_the_capacity_becomes_a_number(tmp_path: Path) -> None:
    path = save_decoder(DecoderShape(), tmp_path / "decoder.onnx")
    prepared = _prepare(path, capacity=40)
    assert prepared.input_shapes["past_key_values.1.value"] == ("batch", 2, 40, 16)
    assert prepared.input_shapes["value_gain"] == ("batch", 40)
    assert prepared.input_shapes["inputs_embeds"] == ("batch", "sequence", 64)
    assert b"capacity" not in prepared.model_bytes
    with refused(path, "key_log_gain"):
        _prepare(path, capacity=None)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("q_len", "past"), [(24, [0, 0]), (5, [3, 17]), (1, [0, 23])])
def test_the_native_decoder_computes_the_same(tmp_path: Path, dtype: str, q_len: int, past: list[int]) -> None:
    shape = DecoderShape(dtype=dtype)
    path = save_decoder(shape, tmp_path / "decoder.onnx")
    prepared = _prepare(path, "native", served=False)
    model = onnx.load_model_from_string(prepared.model_bytes)
    assert prepared.plugin_nodes == ()
    assert {node.domain for node in model.graph.node} == {""}
    for node in model.graph.node:  # the one thing in it that only TensorRT's parser knows
        for attribute in [a for a in node.attribute if a.name == "TRT_decomposable"]:
            node.attribute.remove(attribute)
    # Weights back inside, so that ONNX Runtime needs no folder.
    inside = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    for tensor in model.graph.initializer:
        if tensor.name in inside:
            tensor.CopyFrom(numpy_helper.from_array(inside[tensor.name], tensor.name))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = decoder_feed(shape, capacity=24, q_len=q_len, past=past)
    for name in feed:  # what lies in unwritten slots must not matter
        if name.startswith("past_key_values"):
            for row, length in enumerate(past):
                feed[name][row, :, length:] = np.nan if name.endswith("value") else 1000.0
    (logits,) = session.run(["logits"], feed)
    expected = numpy_decoder(shape, feed)["logits"]
    tolerance = 1e-6 if dtype == "float32" else 2e-3
    assert np.abs(logits - expected).max() <= tolerance * np.abs(expected).max()


def test_an_op_without_plugin_is_refused(tmp_path: Path) -> None:
    path = save_decoder(DecoderShape(), tmp_path / "decoder.onnx")
    with refused(path, "AnchoredAttention") as error:
        _prepare(path, served=False)
    assert error.value.fix is not None and "--attention native" in error.value.fix


def test_an_op_with_neither_plugin_nor_body_is_refused(tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 24, "ai.videoanchor" : 1]>
        g (float[4] x) => (float[4] y) { y = ai.videoanchor.Other (x) }""")
    onnx.save(model, tmp_path / "other.onnx")
    with refused(tmp_path / "other.onnx", "Other", fix=False):
        _prepare(tmp_path / "other.onnx", served=False)


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    with refused(tmp_path / "none.onnx", fix=False):
        _prepare(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with refused(tmp_path / "text.onnx", fix=False):
        _prepare(tmp_path / "text.onnx")
