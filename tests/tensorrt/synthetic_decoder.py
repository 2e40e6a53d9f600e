"""A small decoder with the contract of a bundle's `decoder.onnx`, written in ONNX's text form.

inputs_embeds (B,S,D), position_ids (1,B,S), key_log_gain (B,C), value_gain (B,C), past_length (B,),
past_key_values.{i}.key/value (B,Hkv,C,Dh) -> logits (B,V) of the last position, present.{i}.key/value. The attention is
a node of the domain `ai.videoanchor` with a model-local function body. In place of rotary embeddings the embeddings are
scaled by a table's entry for their position, so that wrong positions are seen. `numpy_decoder` is the same arithmetic
in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, numpy_helper, parser

Array = npt.NDArray[Any]
POSITIONS = 128  # that the table knows

# softmax(scale·QKᵀ + key_log_gain + mask) · (value_gain · V), grouped query heads, float32 inside.
FUNCTION_BODY = """
<domain: "ai.videoanchor", opset_import: ["" : 24]>
AnchoredAttention <scale, is_causal> (query, key, value, key_log_gain, value_gain, kv_length) => (output) {
    scale_value = Constant <value_float: float = @scale> ()
    causal_flag = Constant <value_int: int = @is_causal> ()
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    minus_one = Constant <value_ints = [-1]> ()
    group_axis = Constant <value_ints = [2]> ()
    row_axis = Constant <value_ints = [1]> ()
    key_axes = Constant <value_ints = [1, 2, 3]> ()
    gain_axes = Constant <value_ints = [1, 2, 4]> ()
    bias_axes = Constant <value_ints = [1, 2, 3]> ()
    length_axes = Constant <value_ints = [1, 2, 3, 4]> ()
    masked = Constant <value_float = -1e30> ()
    batch = Shape <start = 0, end = 1> (query)
    q_len_1 = Shape <start = 2, end = 3> (query)
    q_len = Squeeze (q_len_1)
    head_dim = Shape <start = 3, end = 4> (query)
    kv_heads = Shape <start = 1, end = 2> (key)
    kv_len_1 = Shape <start = 2, end = 3> (key)
    kv_len = Squeeze (kv_len_1)
    grouped_shape = Concat <axis = 0> (batch, kv_heads, minus_one, q_len_1, head_dim)
    query_32 = Cast <to = 1> (query)
    query_grouped = Reshape (query_32, grouped_shape)
    key_32 = Cast <to = 1> (key)
    key_5d = Unsqueeze (key_32, group_axis)
    key_t = Transpose <perm = [0, 1, 2, 4, 3]> (key_5d)
    raw_scores = MatMul (query_grouped, key_t)
    scaled_scores = Mul (raw_scores, scale_value)
    bias = Unsqueeze (key_log_gain, bias_axes)
    scores = Add (scaled_scores, bias)
    columns = Range (zero, kv_len, one)
    rows = Range (zero, q_len, one)
    row_index = Unsqueeze (rows, row_axis)
    length = Unsqueeze (kv_length, length_axes)
    past = Sub (length, q_len)
    last_causal = Add (row_index, past)
    last_valid = Sub (length, one)
    is_causal_flag = Equal (causal_flag, one)
    last_visible = Where (is_causal_flag, last_causal, last_valid)
    visible = LessOrEqual (columns, last_visible)
    logits = Where (visible, scores, masked)
    weights = Softmax <axis = -1> (logits)
    gain = Unsqueeze (value_gain, gain_axes)
    value_32 = Cast <to = 1> (value)
    value_5d = Unsqueeze (value_32, group_axis)
    value_scaled = Mul (value_5d, gain)
    output_grouped = MatMul (weights, value_scaled)
    query_shape = Shape (query)
    output_32 = Reshape (output_grouped, query_shape)
    output = CastLike (output_32, query)
}
"""


@dataclass(frozen=True)
class DecoderShape:
    layers: int = 2
    query_heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    vocabulary: int = 32
    dtype: str = "float32"

    @property
    def hidden(self) -> int:
        return self.query_heads * self.head_dim

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5


def decoder_weights(shape: DecoderShape, seed: int = 0) -> dict[str, Array]:
    """Random weights by initializer name, in the model's dtype."""
    rng = np.random.default_rng(seed)
    hidden, kv_width = shape.hidden, shape.kv_heads * shape.head_dim
    widths = {"q": hidden, "k": kv_width, "v": kv_width, "o": hidden}
    weights = {
        f"layer{layer}_{name}": rng.standard_normal((hidden, width)) / np.sqrt(hidden)
        for layer in range(shape.layers)
        for name, width in widths.items()
    }
    weights["position_scale"] = 2.0 ** rng.integers(-1, 1, (POSITIONS, 1))  # exact at every precision
    weights["lm_head"] = rng.standard_normal((hidden, shape.vocabulary)) / np.sqrt(hidden)
    return {name: value.astype(shape.dtype) for name, value in weights.items()}


def _layer_text(shape: DecoderShape, i: int, hidden_in: str) -> str:
    heads = ((shape.query_heads, "q"), (shape.kv_heads, "k"), (shape.kv_heads, "v"))
    projections = "".join(
        f"""
    {p}{i}_shape = Constant <value_ints = [0, 0, {count}, {shape.head_dim}]> ()
    {p}{i}_flat = MatMul ({hidden_in}, layer{i}_{p})
    {p}{i}_split = Reshape ({p}{i}_flat, {p}{i}_shape)
    {p}{i} = Transpose <perm = [0, 2, 1, 3]> ({p}{i}_split)"""
        for count, p in heads
    )
    return f"""{projections}
    "present.{i}.key" = TensorScatter <axis = -2> ("past_key_values.{i}.key", k{i}, past_length)
    "present.{i}.value" = TensorScatter <axis = -2> ("past_key_values.{i}.value", v{i}, past_length)
    attended{i} = ai.videoanchor.AnchoredAttention <scale = {shape.scale}, is_causal = 1> (
        q{i}, "present.{i}.key", "present.{i}.value", key_log_gain, value_gain, kv_length)
    merged{i} = Transpose <perm = [0, 2, 1, 3]> (attended{i})
    flat{i} = Reshape (merged{i}, flat_shape)
    projected{i} = MatMul (flat{i}, layer{i}_o)
    hidden{i} = Add ({hidden_in}, projected{i})"""


def decoder_model(shape: DecoderShape, seed: int = 0) -> ModelProto:
    """The decoder as one ModelProto with its weights inside."""
    t = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}[shape.dtype]
    cache = f"{t}[batch,{shape.kv_heads},capacity,{shape.head_dim}]"
    pairs = [(i, kind) for i in range(shape.layers) for kind in ("key", "value")]
    inputs = [
        f"{t}[batch,sequence,{shape.hidden}] inputs_embeds",
        "int64[1,batch,sequence] position_ids",
        "float[batch,capacity] key_log_gain",
        "float[batch,capacity] value_gain",
        "int64[batch] past_length",
        *(f'{cache} "past_key_values.{i}.{kind}"' for i, kind in pairs),
    ]
    outputs = [f"{t}[batch,{shape.vocabulary}] logits", *(f'{cache} "present.{i}.{kind}"' for i, kind in pairs)]
    layers = "".join(_layer_text(shape, i, "placed" if i == 0 else f"hidden{i - 1}") for i in range(shape.layers))
    model = parser.parse_model(
        f"""
<ir_version: 10, opset_import: ["" : 24, "ai.videoanchor" : 1]>
decoder ({", ".join(inputs)}) => ({", ".join(outputs)})
{{
    flat_shape = Constant <value_ints = [0, 0, {shape.hidden}]> ()
    last = Constant <value_int = -1> ()
    first = Constant <value_int = 0> ()
    positions = Gather <axis = 0> (position_ids, first)
    position_factor = Gather <axis = 0> (position_scale, positions)
    placed = Mul (inputs_embeds, position_factor)
    seq_len = Shape <start = 1, end = 2> (inputs_embeds)
    kv_length = Add (past_length, seq_len){layers}
    last_hidden = Gather <axis = 1> (hidden{shape.layers - 1}, last)
    logits = MatMul (last_hidden, lm_head)
}}
{FUNCTION_BODY}"""
    )
    for name, value in decoder_weights(shape, seed).items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    onnx.checker.check_model(model)
    return model


def save_decoder(shape: DecoderShape, path: Path, seed: int = 0) -> Path:
    """Write the decoder with its weights in `<name>.data` beside it, as a bundle does."""
    onnx.save_model(
        decoder_model(shape, seed), path, save_as_external_data=True, location=path.name + ".data", size_threshold=0
    )
    return path


def numpy_attention(
    query: Array, key: Array, value: Array, key_log_gain: Array, value_gain: Array, kv_length: Array, scale: float
) -> Array:
    """Causal AnchoredAttention in float64: key j is visible to row i iff j <= i + kv_length - Sq."""
    batch, heads, q_len, _ = query.shape
    output = np.zeros((batch, heads, q_len, value.shape[-1]))
    group = heads // key.shape[1]
    for b in range(batch):
        for head in range(heads):
            for row in range(q_len):
                n = row + int(kv_length[b]) - q_len + 1
                if n <= 0:
                    continue
                k, v = key[b, head // group, :n].astype(np.float64), value[b, head // group, :n].astype(np.float64)
                logits = scale * k @ query[b, head, row].astype(np.float64) + key_log_gain[b, :n]
                weights = np.exp(logits - logits.max())
                output[b, head, row] = (weights / weights.sum()) @ (value_gain[b, :n, None] * v)
    return output


def numpy_decoder(shape: DecoderShape, inputs: Mapping[str, Array], seed: int = 0) -> dict[str, Array]:
    """The decoder's outputs by name in float64; the caches given are not changed."""
    weights = {name: value.astype(np.float64) for name, value in decoder_weights(shape, seed).items()}
    hidden = inputs["inputs_embeds"].astype(np.float64) * weights["position_scale"][inputs["position_ids"][0]]
    batch, length, _ = hidden.shape
    past = inputs["past_length"]
    outputs: dict[str, Array] = {}

    def split(x: Array, heads: int) -> Array:
        return x.reshape(batch, length, heads, shape.head_dim).transpose(0, 2, 1, 3)

    for i in range(shape.layers):
        query = split(hidden @ weights[f"layer{i}_q"], shape.query_heads)
        caches = {}
        for kind in ("key", "value"):
            new = split(hidden @ weights[f"layer{i}_{kind[0]}"], shape.kv_heads)
            cache = inputs[f"past_key_values.{i}.{kind}"].astype(np.float64)
            for b in range(batch):
                cache[b, :, past[b] : past[b] + length] = new[b]
            caches[kind] = outputs[f"present.{i}.{kind}"] = cache
        attended = numpy_attention(
            query,
            caches["key"],
            caches["value"],
            inputs["key_log_gain"],
            inputs["value_gain"],
            past + length,
            shape.scale,
        )
        hidden = hidden + attended.transpose(0, 2, 1, 3).reshape(batch, length, -1) @ weights[f"layer{i}_o"]
    outputs["logits"] = hidden[:, -1] @ weights["lm_head"]
    return outputs


def decoder_feed(shape: DecoderShape, *, capacity: int, q_len: int, past: list[int], seed: int = 1) -> dict[str, Array]:
    """Random inputs: embeddings, positions in no order, gains as strong as the paper's strongest, and caches filled to
    the brim."""
    rng = np.random.default_rng(seed)
    batch = len(past)
    cache = (batch, shape.kv_heads, capacity, shape.head_dim)
    feed: dict[str, Array] = {
        "inputs_embeds": rng.standard_normal((batch, q_len, shape.hidden)).astype(shape.dtype),
        "key_log_gain": np.log1p(9.5 * rng.random((batch, capacity))).astype(np.float32),
        "value_gain": (1 + 2.5 * rng.random((batch, capacity))).astype(np.float32),
        "past_length": np.array(past, np.int64),
    }
    for i in range(shape.layers):
        for kind in ("key", "value"):
            feed[f"past_key_values.{i}.{kind}"] = rng.standard_normal(cache).astype(shape.dtype)
    feed["position_ids"] = rng.integers(0, POSITIONS, (1, batch, q_len))
    return feed
