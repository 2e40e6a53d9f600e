"""The op's function body and PyTorch form against an independent float64 computation, and its schema against its
body."""

from __future__ import annotations

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


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "atol"), [(np.float32, 2e-6), (np.float16, 4e-3)])
def test_function_body_and_torch_form_compute_the_contract(shape, dtype, atol, causal):
    # Tolerances: 2⁻²⁴ and 2⁻¹¹ times values up to 3.5·4 and a few roundings.
    arrays = inputs(shape, dtype, seed=sum(shape[:7]))
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


def test_function_body_declares_what_the_schema_declares():
    schema, body = op.schema(), op.function_body()
    assert [parameter.name for parameter in schema.inputs] == list(op.INPUTS) == list(body.input)
    assert sorted(schema.attributes) == sorted(op.ATTRIBUTES) == sorted(body.attribute)
    assert [parameter.name for parameter in schema.outputs] == list(body.output)
    assert (body.domain, body.name, schema.since_version) == (DOMAIN, op.OP_TYPE, VERSION)
    assert all(node.domain == "" for node in body.node), "the body must run in any runtime"
