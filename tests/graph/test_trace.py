"""The traced components, in ONNX Runtime, against the official implementation's numbers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from written import write_onnx

from va_export.bundle.decoder_shards import DecoderShard
from va_export.checkpoint.files import Checkpoint
from va_export.graph.native import write_native_form
from va_export.graph.stream_weights import stream_weights
from va_export.graph.trace import FakeModel
from va_export.graph.weight_layout import data_bytes, layout_weights
from va_export.graph.write_onnx import check_onnx, reserve
from va_export.models import family_for
from va_export.models.parameters import load_model
from va_export.ops.declaration import DOMAIN
from va_export.passes import run_passes
from va_export.passes.weight_marks import is_weight

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "internvl2_tiny"
CAPACITY = 192


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "golden.npz"))


@pytest.fixture(scope="module")
def source():
    checkpoint = Checkpoint.open(GOLDEN)
    family = family_for(checkpoint.config)
    return checkpoint, family, family.spec_from_checkpoint(checkpoint)


def components(family, spec, precision):
    """The model's parts by name, the decoder in one piece."""
    layers = spec.text.num_layers
    parts = family.components(spec, precision, (DecoderShard("decoder", 0, layers, layers),))
    return {part.name: part for part in parts}


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def exported(request, source, tmp_path_factory):
    checkpoint, family, spec = source
    folder = tmp_path_factory.mktemp(request.param)
    model = FakeModel(family, spec, request.param)
    for name, component in components(family, spec, request.param).items():
        write_onnx(run_passes(model.trace(component)), folder / f"{name}.onnx", checkpoint, family.weight_map(spec))
        check_onnx(folder / f"{name}.onnx")
    write_native_form(folder / "decoder.onnx", folder / "decoder_native.onnx")
    return request.param, folder


def session(folder: Path, name: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), options)


class Decoder:
    """A decoder session with its cache carried from call to call."""

    def __init__(self, folder: Path, name: str, dtype: type, batch: int = 1) -> None:
        self.session = session(folder, name)
        self.caches = [i.name for i in self.session.get_inputs()[5:]]
        self.cache = [np.zeros((batch, 2, CAPACITY, 32), dtype) for _ in self.caches]
        self.past = 0
        self.batch = batch

    def __call__(self, embeds, log_gain=None, gain=None, positions=None):
        """Logits after more embeddings, at the slots' own positions unless others are given, (S,)."""
        length = embeds.shape[1]
        counted = np.arange(self.past, self.past + length) if positions is None else np.asarray(positions)
        padded = np.zeros((self.batch, CAPACITY), np.float32), np.ones((self.batch, CAPACITY), np.float32)
        if log_gain is not None:
            padded[0][:, : len(log_gain)], padded[1][:, : len(gain)] = log_gain, gain
        inputs = {
            "inputs_embeds": embeds,
            "position_ids": np.tile(counted.astype(np.int64), (1, self.batch, 1)),
            "key_log_gain": padded[0],
            "value_gain": padded[1],
            "past_length": np.full(self.batch, self.past, np.int64),
        }
        logits, *self.cache = self.session.run(None, inputs | dict(zip(self.caches, self.cache, strict=True)))
        self.past += length
        return logits


def embed(folder: Path, ids, golden, visual):
    is_visual = ids == golden["image_token_id"]
    inputs = {"input_ids": ids, "is_visual": is_visual, "visual_tokens": visual}
    return session(folder, "embedding").run(None, inputs)[0]


# float32: 2⁻²⁴ · some hundred roundings on logits of size 1. float16: 2⁻¹¹ in place of it, on the same logits.
ATOL = {"fp32": 2e-5, "fp16": 2e-2}
DTYPE = {"fp32": np.float32, "fp16": np.float16}


@pytest.mark.parametrize("form", ["decoder", "decoder_native"])
def test_golden_prefill_and_decode(exported, golden, form):
    precision, folder = exported
    visual = session(folder, "vision").run(None, {"pixel_values": golden["pixel_values"]})[0]
    np.testing.assert_allclose(visual, golden["visual_tokens"], atol=ATOL[precision] / 10)
    decoder = Decoder(folder, form, DTYPE[precision])
    embeds = embed(folder, golden["input_ids"], golden, visual)
    steps = [embed(folder, np.array([[token]]), golden, visual[:1]) for token in golden["tokens"]]
    rows = [
        decoder(embeds, golden["key_log_gain_official"], golden["gain_v"])[0],
        *(decoder(step)[0] for step in steps),
    ]
    np.testing.assert_allclose(rows, golden["decode_logits"], atol=ATOL[precision])
    assert [int(row.argmax()) for row in rows[:8]] == golden["tokens"].tolist()


# Positions that are not the slots of the cache: shifted, with gaps, and standing still as those of an image's rows do.
POSITIONS = {
    "shifted": np.arange(1000, 1012),
    "gapped": np.array([0, 1, 5, 6, 40, 41, 42, 100, 101, 350, 351, 900]),
    "repeated": np.array([3, 3, 3, 3, 4, 4, 5, 5, 5, 9, 9, 10]),
}


@pytest.fixture(scope="module")
def hugging_face(source):
    """The same weights in Hugging Face's own model, with its own attention and rotary embedding."""
    checkpoint, family, spec = source
    model = load_model(family, spec, checkpoint, torch.float32, "sdpa").eval()
    text = model.model.language_model
    text.rotary_emb = LlamaRotaryEmbedding(text.config)
    return model


@pytest.mark.parametrize("exported", ["fp32"], indirect=True)
@pytest.mark.parametrize("form", ["decoder", "decoder_native"])
@pytest.mark.parametrize("name", POSITIONS)
def test_positions_turn_the_decoder_as_hugging_faces_does(exported, hugging_face, form, name):
    """Prefill of nine positions, then three steps, against one pass of Hugging Face's model."""
    _, folder = exported
    positions, prefilled = POSITIONS[name], 9
    embeds = np.random.default_rng(0).normal(size=(1, len(positions), 128)).astype(np.float32)

    def expected(positions):
        with torch.no_grad():
            text, position_ids = hugging_face.model.language_model, torch.from_numpy(positions)[None]
            # With a cache: without one, positions that do not count up would be taken for several packed sequences.
            state = text(inputs_embeds=torch.from_numpy(embeds), position_ids=position_ids, use_cache=True)
            return hugging_face.lm_head(state.last_hidden_state)[0].numpy()

    wanted = expected(positions)[prefilled - 1 :]
    decoder = Decoder(folder, form, np.float32)
    rows = [decoder(embeds[:, :prefilled], positions=positions[:prefilled])[0]]
    steps = (slice(place, place + 1) for place in range(prefilled, len(positions)))
    rows += [decoder(embeds[:, step], positions=positions[step])[0] for step in steps]
    np.testing.assert_allclose(rows, wanted, atol=ATOL["fp32"])
    if name != "shifted":  # rotary embeddings see distances alone, so a shift changes nothing but rounding
        assert np.abs(wanted - expected(np.arange(len(positions)))[prefilled - 1 :]).max() > 100 * ATOL["fp32"]


@pytest.mark.parametrize("form", ["decoder", "decoder_native"])
def test_prefill_in_chunks_is_prefill(exported, golden, form):
    precision, folder = exported
    embeds = embed(folder, golden["input_ids"], golden, golden["visual_tokens"])
    gains = golden["key_log_gain_official"], golden["gain_v"]
    whole = Decoder(folder, form, DTYPE[precision])(embeds, *gains)
    chunked = Decoder(folder, form, DTYPE[precision])
    for start in (0, 70, 120):
        logits = chunked(embeds[:, start : (start + 70 if start == 0 else 120 if start == 70 else None)], *gains)
    np.testing.assert_allclose(logits, whole, atol=ATOL[precision])


def test_rows_of_a_batch_do_not_touch_each_other(exported, golden):
    precision, folder = exported
    embeds = embed(folder, golden["input_ids"], golden, golden["visual_tokens"])
    other = embeds[:, ::-1].copy()
    gains = golden["key_log_gain_official"], golden["gain_v"]
    both = Decoder(folder, "decoder", DTYPE[precision], batch=2)(np.concatenate([embeds, other]), *gains)
    for row, alone in zip(both, (embeds, other), strict=True):
        np.testing.assert_allclose(
            row, Decoder(folder, "decoder", DTYPE[precision])(alone, *gains)[0], atol=ATOL[precision]
        )


def test_visual_tokens_take_the_placeholders_in_order(exported, golden):
    _, folder = exported
    image = int(golden["image_token_id"])
    ids = np.array([[image, 5, image], [7, image, 5]])
    visual = np.arange(3 * 128, dtype=np.float32).reshape(3, 128)
    embeds = embed(folder, ids, golden, visual)
    np.testing.assert_array_equal(embeds[[0, 0, 1], [0, 2, 1]], visual)
    np.testing.assert_array_equal(embeds[0, 1], embeds[1, 2])
    assert not np.array_equal(embeds[1, 0], embeds[1, 2])


def test_files_hold_weights_outside_and_the_op_with_its_body(exported):
    precision, folder = exported
    model = onnx.load(folder / "decoder.onnx", load_external_data=False)
    assert (folder / "decoder.onnx").stat().st_size < 200_000
    assert [opset.version for opset in model.opset_import if opset.domain == ""] == [24]
    assert Counter(node.op_type for node in model.graph.node if node.domain == DOMAIN) == {"AnchoredAttention": 2}
    assert [(f.domain, f.name) for f in model.functions] == [(DOMAIN, "AnchoredAttention")]
    assert {node.op_type for node in model.graph.node} >= {"RMSNormalization", "RotaryEmbedding", "TensorScatter"}
    assert not [n for n in model.graph.node if n.op_type == "Transpose" and n.input[0].endswith("weight")]
    cache = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}["past_key_values.1.value"]
    assert cache == {"fp32": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16}[precision]
    native = onnx.load(folder / "decoder_native.onnx", load_external_data=False)
    assert not [node for node in native.graph.node if node.domain] and not native.functions


def test_tracing_reads_no_weights(source):
    _, family, spec = source
    model = FakeModel(family, spec, "fp16").trace(components(family, spec, "fp16")["decoder"])
    parameters = set(family.weight_map(spec))
    weights = {name for name, value in model.graph.initializers.items() if is_weight(value)}
    assert weights <= parameters
    assert len(weights) == 9 * spec.text.num_layers + 2
    assert all(value.const_value is None for value in model.graph.initializers.values() if value.name in parameters)


def test_a_weight_that_float16_cannot_hold_is_told(source, tmp_path, monkeypatch):
    checkpoint, family, spec = source
    read = Checkpoint.rows

    def rows(self, name, start, stop):
        return read(self, name, start, stop) * (1e6 if name == "language_model.output.weight" else 1)

    monkeypatch.setattr(Checkpoint, "rows", rows)
    model = run_passes(FakeModel(family, spec, "fp16").trace(components(family, spec, "fp16")["decoder"]))
    slots = layout_weights(model)
    reserve(tmp_path / "data", data_bytes(slots))
    streamed = stream_weights(tmp_path / "data", slots, family.weight_map(spec), checkpoint)
    assert set(streamed.unusable) == {"lm_head.weight"} and streamed.unusable["lm_head.weight"].overflow > 0


def test_weights_carry_the_checkpoint_values(exported, source):
    precision, folder = exported
    checkpoint, _, _ = source
    model = ir.load(folder / "decoder.onnx")
    stored = model.graph.initializers["model.language_model.layers.1.mlp.down_proj.weight"].const_value.numpy()
    original = checkpoint.tensor("language_model.model.layers.1.feed_forward.w2.weight").numpy()
    np.testing.assert_array_equal(stored, original.T.astype(DTYPE[precision]))
