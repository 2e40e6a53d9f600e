"""The lowered form against the definition in float64, on ONNX Runtime's CPU provider."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from va_export.passes.lower_anchored_attention import lower_anchored_attention

Array = npt.NDArray[Any]
SCALE = 0.3


def _model(dtype: str, causal: int = 1, nodes: int = 1, with_length: bool = True, value_dim: str = "D") -> ir.Model:
    t = {"float32": "float", "float16": "float16"}[dtype]
    length = ", kv_length" if with_length else ""
    calls = "\n".join(
        f"""y{i} = ai.videoanchor.AnchoredAttention <scale = {SCALE}, is_causal = {causal}>
            (query, key, value, key_log_gain, value_gain{length})"""
        for i in range(nodes)
    )
    outputs = ", ".join(f"{t}[B,H,S,{value_dim}] y{i}" for i in range(nodes))
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 24, "ai.videoanchor" : 1]>
        g ({t}[B,H,S,D] query, {t}[B,G,C,D] key, {t}[B,G,C,{value_dim}] value,
           float[B,C] key_log_gain, float[B,C] value_gain, int64[B] kv_length) => ({outputs})
        {{ {calls} }}""")
    return ir.from_proto(model)


def _run(model: ir.Model, feed: dict[str, Array]) -> Array:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    return np.asarray(session.run(None, {k: v for k, v in feed.items() if k in names})[0])


def _feed(
    batch: int, heads: tuple[int, int], q_len: int, capacity: int, lengths: list[int], dtype: str, seed: int = 0
) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    dim = 8
    return {
        "query": rng.standard_normal((batch, heads[0], q_len, dim)).astype(dtype),
        "key": rng.standard_normal((batch, heads[1], capacity, dim)).astype(dtype),
        "value": rng.standard_normal((batch, heads[1], capacity, dim)).astype(dtype),
        "key_log_gain": np.log1p(9.5 * rng.random((batch, capacity))).astype(np.float32),
        "value_gain": (1 + 2.5 * rng.random((batch, capacity))).astype(np.float32),
        "kv_length": np.array(lengths, np.int64),
    }


def _reference(feed: dict[str, Array], causal: int = 1) -> Array:
    """O_i = Σ_j softmax_j(scale · q_i·k_j + key_log_gain[j]) · value_gain[j] · v_j over the visible j, in float64."""
    query, key, value = (feed[name].astype(np.float64) for name in ("query", "key", "value"))
    batch, heads, q_len, _ = query.shape
    output = np.zeros((*query.shape[:3], value.shape[3]))
    for b, h, i in np.ndindex(batch, heads, q_len):
        length = int(feed["kv_length"][b])
        visible = slice(0, max(0, i + length - q_len + 1 if causal else length))
        group = h // (heads // key.shape[1])
        logits = SCALE * key[b, group, visible] @ query[b, h, i] + feed["key_log_gain"][b, visible]
        if logits.size:
            weights = np.exp(logits - logits.max())
            gained = feed["value_gain"][b, visible, None] * value[b, group, visible]
            output[b, h, i] = weights / weights.sum() @ gained
    return output


def _assert_close(actual: Array, expected: Array, dtype: str) -> None:
    assert actual.dtype == dtype
    tolerance = {"float32": 2e-6, "float16": 2e-3}[dtype]
    assert np.abs(actual.astype(np.float64) - expected).max() <= tolerance * max(1.0, np.abs(expected).max())


@settings(max_examples=25, deadline=None)
@given(
    q_len=st.integers(1, 9),
    past=st.lists(st.integers(0, 11), min_size=1, max_size=3),
    spare=st.integers(0, 5),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 1)]),
    causal=st.integers(0, 1),
    dtype=st.sampled_from(["float32", "float16"]),
)
def test_prefill_chunks_and_decode_match_the_definition(
    q_len: int, past: list[int], spare: int, heads: tuple[int, int], causal: int, dtype: str
) -> None:
    lengths = [p + q_len for p in past]
    feed = _feed(len(past), heads, q_len, max(lengths) + spare, lengths, dtype)
    model = _model(dtype, causal)
    assert lower_anchored_attention(model) == 1
    _assert_close(_run(model, feed), _reference(feed, causal), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_unwritten_slots_do_not_matter(dtype: str) -> None:
    feed = _feed(2, (4, 2), 3, 12, [5, 9], dtype)
    model = _model(dtype)
    lower_anchored_attention(model)
    clean = _run(model, feed)
    for row, length in enumerate(feed["kv_length"]):
        feed["key"][row, :, length:] = 2000.0
        feed["value"][row, :, length:] = np.nan
        feed["key_log_gain"][row, length:] = 50.0
        feed["value_gain"][row, length:] = np.inf
    np.testing.assert_array_equal(_run(model, feed), clean)


def test_a_row_that_sees_no_key_gives_zero() -> None:
    feed = _feed(2, (2, 2), 4, 6, [2, 0], "float32")
    model = _model("float32")
    lower_anchored_attention(model)
    output = _run(model, feed)
    assert np.all(output[0, :, :2] == 0) and np.all(output[1] == 0)
    _assert_close(output, _reference(feed), "float32")


def test_without_a_length_every_slot_is_valid() -> None:
    feed = _feed(2, (2, 1), 3, 7, [7, 7], "float32")
    model = _model("float32", with_length=False)
    lower_anchored_attention(model)
    _assert_close(_run(model, feed), _reference(feed), "float32")


def test_float16_holds_the_stated_range() -> None:
    feed = _feed(1, (1, 1), 1, 4, [4], "float16")
    feed["value"][:] = 5900.0
    feed["value_gain"][:] = 11.0
    model = _model("float16")
    lower_anchored_attention(model)
    assert np.all(_run(model, feed) == np.float16(5900.0 * 11.0))
    feed["value"][:] = 6000.0  # 66000 is no float16: it shows, and does not come out as a wrong number
    assert np.all(np.isinf(_run(model, feed)))


def test_the_bias_is_shared_between_layers() -> None:
    one, three = _model("float16"), _model("float16", nodes=3)
    lower_anchored_attention(one)
    assert lower_anchored_attention(three) == 3

    def count(model: ir.Model, op_type: str) -> int:
        return sum(node.op_type == op_type for node in model.graph)

    assert (count(three, "Attention"), count(three, "LessOrEqual"), count(three, "Range")) == (3, 1, 2)
    feed = _feed(2, (4, 2), 3, 12, [5, 9], "float16")
    np.testing.assert_array_equal(_run(three, feed), _run(one, feed))


def test_values_of_another_width_are_refused() -> None:
    with refused("AnchoredAttention", "D", "E"):
        lower_anchored_attention(_model("float32", value_dim="E"))
