"""The op's function body and PyTorch form against an independent float64 computation, and its schema against its
body."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from va_export.ops import anchored_attention as op
from va_export.ops.declaration import DOMAIN, VERSION


def expected(query, key, value, log_gain, gain, kv_length, scale, causal):
    """The contract, written out row by row in float64."""
    batch, query_heads, q_len, _ = query.shape
    kv_heads = key.shape[1]
    output = np.zeros((batch, query_heads, q_len, value.shape[3]))
    for b in range(batch):
        for h in range(query_heads):
            g = h // (query_heads // kv_heads)
            for i in range(q_len):
                last = i + kv_length[b] - q_len if causal else kv_length[b] - 1
                visible = [j for j in range(kv_length[b]) if j <= last and np.isfinite(log_gain[b, j])]
                if visible:
                    logits = scale * key[b, g, visible].astype(np.float64) @ query[b, h, i].astype(np.float64)
                    weights = np.exp(logits + log_gain[b, visible] - (logits + log_gain[b, visible]).max())
                    weighted = weights / weights.sum() * gain[b, visible]
                    output[b, h, i] = weighted @ value[b, g, visible].astype(np.float64)
    return output


def model(elem_type: int, causal: bool, scale: float) -> bytes:
    node = helper.make_node(op.OP_TYPE, list(op.INPUTS), ["output"], domain=DOMAIN, scale=scale, is_causal=int(causal))
    shapes = {
        "query": ["B", "Hq", "S", "D"],
        "key": ["B", "Hk", "C", "D"],
        "value": ["B", "Hk", "C", "Dv"],
        "key_log_gain": ["B", "C"],
        "value_gain": ["B", "C"],
        "kv_length": ["B"],
    }
    types = dict.fromkeys(shapes, elem_type) | {
        "key_log_gain": TensorProto.FLOAT,
        "value_gain": TensorProto.FLOAT,
        "kv_length": TensorProto.INT64,
    }
    graph = helper.make_graph(
        [node],
        "one_node",
        [helper.make_tensor_value_info(name, types[name], shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("output", elem_type, ["B", "Hq", "S", "Dv"])],
    )
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, VERSION)]
    made = helper.make_model(graph, opset_imports=opsets, functions=[op.function_body()], ir_version=11)
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString()


# batch, query heads, kv heads, q_len, kv_len, head_dim, value_head_dim, kv_length
SHAPES = [
    (1, 1, 1, 1, 1, 8, 8, [1]),
    (2, 4, 2, 5, 9, 16, 16, [9, 7]),
    (1, 4, 1, 1, 17, 16, 24, [5]),
    (2, 7, 7, 6, 8, 8, 8, [3, 0]),
    (2, 2, 1, 2, 4, 8, 8, [0, 0]),
    (1, 2, 2, 17, 17, 64, 64, [17]),
    (3, 8, 2, 3, 33, 32, 32, [33, 4, 3]),
]


def inputs(shape, dtype, seed):
    batch, query_heads, kv_heads, q_len, kv_len, head_dim, value_dim, kv_length = shape
    rng = np.random.default_rng(seed)
    arrays = {
        "query": rng.normal(size=(batch, query_heads, q_len, head_dim)).astype(dtype),
        "key": rng.normal(size=(batch, kv_heads, kv_len, head_dim)).astype(dtype),
        "value": rng.normal(size=(batch, kv_heads, kv_len, value_dim)).astype(dtype),
        "key_log_gain": rng.uniform(0, 2.3, (batch, kv_len)).astype(np.float32),
        "value_gain": rng.uniform(1, 3.5, (batch, kv_len)).astype(np.float32),
        "kv_length": np.array(kv_length, dtype=np.int64),
    }
    for row, length in enumerate(kv_length):  # what an unwritten slot may hold must not be felt
        arrays["key"][row, :, length:] = np.nan
        arrays["value"][row, :, length:] = np.inf
    return arrays


def make_neutral(arrays, beyond):
    """Gains of 1 on every key; `beyond` on what no key is in."""
    for name, neutral in (("key_log_gain", 0.0), ("value_gain", 1.0)):
        for row, length in enumerate(arrays["kv_length"]):
            arrays[name][row, :length], arrays[name][row, length:] = neutral, neutral if beyond is None else beyond


# Gains; none at all, as in decode steps; none, and something else than that where no key is.
@pytest.mark.parametrize("gains", ["some", "none", "none, unwritten"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "atol"), [(np.float32, 2e-6), (np.float16, 4e-3)])
def test_function_body_and_torch_form_compute_the_contract(shape, dtype, atol, causal, gains):
    # Tolerances: 2⁻²⁴ and 2⁻¹¹ times values up to 3.5·4 and a few roundings.
    arrays = inputs(shape, dtype, seed=sum(shape[:7]))
    if gains != "some":
        make_neutral(arrays, None if gains == "none" else np.nan)
    scale = 1 / np.sqrt(shape[5])
    names = ("query", "key", "value", "key_log_gain", "value_gain", "kv_length")
    wanted = expected(*(arrays[name] for name in names), scale, causal)
    elem_type = TensorProto.FLOAT if dtype == np.float32 else TensorProto.FLOAT16
    session = onnxruntime.InferenceSession(model(elem_type, causal, scale))
    np.testing.assert_allclose(session.run(None, arrays)[0], wanted, atol=atol, rtol=atol)
    result = op.torch_op()(*(torch.from_numpy(arrays[name]) for name in names), scale, causal)
    np.testing.assert_allclose(result.numpy(), wanted, atol=atol, rtol=atol)


def test_a_gain_of_zero_removes_its_key():
    arrays = inputs((1, 2, 1, 4, 6, 8, 8, [6]), np.float32, seed=3)
    arrays["key_log_gain"][0, 1] = -np.inf
    wanted = expected(*arrays.values(), 0.5, True)
    session = onnxruntime.InferenceSession(model(TensorProto.FLOAT, True, 0.5))
    np.testing.assert_allclose(session.run(None, arrays)[0], wanted, atol=2e-6)
    arrays["key_log_gain"][:] = -np.inf
    assert not session.run(None, arrays)[0].any()


@pytest.mark.parametrize("name", ["key_log_gain", "value_gain"])
def test_one_gain_on_one_key_is_felt(name):
    arrays = inputs((2, 4, 2, 3, 9, 16, 16, [9, 7]), np.float32, seed=5)
    make_neutral(arrays, None)
    arrays[name][1, 4] = 2.0
    session = onnxruntime.InferenceSession(model(TensorProto.FLOAT, True, 0.3))
    wanted = expected(*arrays.values(), 0.3, True)
    np.testing.assert_allclose(session.run(None, arrays)[0], wanted, atol=2e-6, rtol=2e-6)


def executed(arrays, tmp_path):
    """The operators that ONNX Runtime ran, each with its outputs' shapes, by its own profile."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(model(TensorProto.FLOAT, True, 0.3), options)
    session.run(None, arrays)
    events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [event["args"] for event in events if event["name"].endswith("_kernel_time")]
    shapes = [[shape for output in kernel["output_type_shape"] for shape in output.values()] for kernel in kernels]
    return [(kernel["op_name"], shape) for kernel, shape in zip(kernels, shapes, strict=True)]


@pytest.mark.parametrize(
    ("lengths", "neutral", "counts"),
    [
        ([19, 19], True, {"Attention": 1, "Where": 0, "Exp": 0}),  # a step: nothing but attention
        ([19, 7], True, {"Attention": 1, "Where": 2, "Exp": 0}),
        ([19, 19], False, {"Attention": 1, "Exp": 1}),
    ],
)
def test_the_function_body_works_over_the_longest_row(lengths, neutral, counts, tmp_path):
    capacity = 1009
    arrays = inputs((2, 4, 2, 3, capacity, 16, 16, lengths), np.float32, seed=6)
    if neutral:
        make_neutral(arrays, None)
    kernels = executed(arrays, tmp_path)
    assert not [kernel for kernel in kernels if any(capacity in shape for shape in kernel[1])]
    assert any(19 in shape for _, shapes in kernels for shape in shapes)
    assert {op_type: [name for name, _ in kernels].count(op_type) for op_type in counts} == counts


def test_function_body_declares_what_the_schema_declares():
    schema, body = op.schema(), op.function_body()
    assert [parameter.name for parameter in schema.inputs] == list(op.INPUTS) == list(body.input)
    assert sorted(schema.attributes) == sorted(op.ATTRIBUTES) == sorted(body.attribute)
    assert [parameter.name for parameter in schema.outputs] == list(body.output)
    assert (body.domain, body.name, schema.since_version) == (DOMAIN, op.OP_TYPE, VERSION)
    assert {node.domain for node in all_nodes(body.node)} == {""}, "the body must run in any runtime"


def all_nodes(nodes):
    """Nodes and those of their branches."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from all_nodes(attribute.g.node)
