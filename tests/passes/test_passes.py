"""Each pass: what it rewrites, what it must leave alone, and that numbers stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from va_export.passes.compute_softmax_in_float32 import compute_softmax_in_float32
from va_export.passes.fold_constants import fold_constants
from va_export.passes.fold_weight_transposes import fold_weight_transposes
from va_export.passes.fuse_rms_normalization import fuse_rms_normalization
from va_export.passes.fuse_rotary_embedding import fuse_rotary_embedding
from va_export.passes.remove_noop_slices import remove_noop_slices
from va_export.passes.weight_marks import is_transposed

INT64_MAX = np.iinfo(np.int64).max


def build(nodes, inputs, outputs, constants=None):
    """A model of float inputs; constants become Constant nodes."""
    made = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value)))
        for name, value in (constants or {}).items()
    ]
    graph = helper.make_graph(
        [*made, *nodes],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    return ir.from_proto(onnx_with_shapes(model))


def onnx_with_shapes(model):
    from onnx import shape_inference

    return shape_inference.infer_shapes(model)


def run(model: ir.Model, **inputs):
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, inputs)[0]


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph if node.op_type != "Constant"]


@pytest.mark.parametrize(
    ("start", "end", "step", "removed"),
    [(0, INT64_MAX, 1, True), (0, 6, 1, True), (0, 9, 1, True), (0, 5, 1, False), (1, 6, 1, False), (0, 6, 2, False)],
)
def test_only_slices_that_keep_everything_go(start, end, step, removed):
    node = helper.make_node("Slice", ["x", "s", "e", "a", "t"], ["y"])
    after = helper.make_node("Neg", ["y"], ["z"])
    constants = {"s": np.array([start]), "e": np.array([end]), "a": np.array([1]), "t": np.array([step])}
    model = build([node, after], {"x": [2, 6]}, {"z": None}, constants)
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    before = run(model, x=x)
    remove_noop_slices(model)
    assert ("Slice" not in ops(model)) == removed
    np.testing.assert_array_equal(run(model, x=x), before)


def test_a_slice_of_a_dynamic_axis_goes_only_when_unbounded():
    node = helper.make_node("Slice", ["x", "s", "e", "a", "t"], ["y"])
    after = helper.make_node("Neg", ["y"], ["z"])
    constants = {"s": np.array([0]), "e": np.array([6]), "a": np.array([1]), "t": np.array([1])}
    model = build([node, after], {"x": [2, "n"]}, {"z": None}, constants)
    remove_noop_slices(model)
    assert "Slice" in ops(model)


def rms_norm(order):
    nodes = [
        helper.make_node("Pow", ["x", "two"], ["square"]),
        helper.make_node("ReduceMean", ["square", "axes"], ["mean"], keepdims=1, noop_with_empty_axes=0),
        helper.make_node("Add", ["mean", "eps"], ["safe"]),
        helper.make_node("Sqrt", ["safe"], ["root"]),
        helper.make_node("Reciprocal", ["root"], ["inverse"]),
        helper.make_node("Mul", ["x", "inverse"], ["normalized"]),
        helper.make_node("Mul", order, ["y"]),
    ]
    constants = {"two": np.float32(2), "axes": np.array([-1]), "eps": np.float32(1e-5)}
    return build(nodes, {"x": [3, 8], "w": [8]}, {"y": [3, 8]}, constants)


@pytest.mark.parametrize("order", [["w", "normalized"], ["normalized", "w"]])
def test_rms_norm_is_fused(order):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(3, 8)).astype(np.float32), rng.normal(size=8).astype(np.float32)
    model = rms_norm(order)
    before = run(model, x=x, w=w)
    fuse_rms_normalization(model)
    fold_constants(model)
    assert ops(model) == ["RMSNormalization"]
    np.testing.assert_allclose(run(model, x=x, w=w), before, rtol=1e-6)


def rotary(second_start=4, doubled=True):
    nodes = [
        helper.make_node("Concat", ["h", "h" if doubled else "h2"], ["angles"], axis=-1),
        helper.make_node("Cos", ["angles"], ["cos"]),
        helper.make_node("Sin", ["angles"], ["sin"]),
        helper.make_node("Unsqueeze", ["cos", "one"], ["c"]),
        helper.make_node("Unsqueeze", ["sin", "one"], ["s"]),
        helper.make_node("Slice", ["x", "zero", "half", "axis", "one"], ["first"]),
        helper.make_node("Slice", ["x", "begin", "end", "axis", "one"], ["second"]),
        helper.make_node("Neg", ["second"], ["minus"]),
        helper.make_node("Concat", ["minus", "first"], ["rotated"], axis=-1),
        helper.make_node("Mul", ["x", "c"], ["left"]),
        helper.make_node("Mul", ["rotated", "s"], ["right"]),
        helper.make_node("Add", ["left", "right"], ["y"]),
    ]
    constants = {
        "one": np.array([1]),
        "zero": np.array([0]),
        "half": np.array([4]),
        "begin": np.array([second_start]),
        "end": np.array([second_start + 4 if second_start != 4 else INT64_MAX]),
        "axis": np.array([3]),
    }
    inputs = {"x": [2, 3, 5, 8], "h": [2, 5, 4]} | ({} if doubled else {"h2": [2, 5, 4]})
    return build(nodes, inputs, {"y": [2, 3, 5, 8]}, constants)


def test_rotary_embedding_is_fused():
    rng = np.random.default_rng(0)
    x, h = rng.normal(size=(2, 3, 5, 8)).astype(np.float32), rng.normal(size=(2, 5, 4)).astype(np.float32)
    model = rotary()
    before = run(model, x=x, h=h)
    fuse_rotary_embedding(model)
    fold_constants(model)
    assert ops(model).count("RotaryEmbedding") == 1 and "Neg" not in ops(model)
    np.testing.assert_allclose(run(model, x=x, h=h), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("changed", [{"second_start": 2}, {"doubled": False}])
def test_what_only_looks_like_rotary_embedding_stays(changed):
    model = rotary(**changed)
    fuse_rotary_embedding(model)
    assert "RotaryEmbedding" not in ops(model)


def with_weight(uses: int) -> ir.Model:
    nodes = [helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0])]
    nodes += [helper.make_node("MatMul", ["x", "t"], [f"y{i}"]) for i in range(uses)]
    if uses == 2:
        nodes.append(helper.make_node("MatMul", ["x2", "w"], ["y2"]))
    inputs = {"x": [3, 5], "w": [7, 5]} | ({"x2": [3, 7]} if uses == 2 else {})
    model = build(nodes, inputs, {f"y{i}": None for i in range(uses + (uses == 2))})
    weight = next(value for value in model.graph.inputs if value.name == "w")
    model.graph.inputs.remove(weight)
    model.graph.initializers["w"] = weight
    return model


def test_a_transposed_weight_is_marked_and_turned():
    model = with_weight(1)
    fold_weight_transposes(model)
    weight = model.graph.initializers["w"]
    assert ops(model) == ["MatMul"]
    assert is_transposed(weight)
    assert list(weight.shape) == [5, 7]


def test_a_weight_that_is_also_used_as_it_is_stays():
    model = with_weight(2)
    fold_weight_transposes(model)
    assert "Transpose" in ops(model)
    assert not is_transposed(model.graph.initializers["w"])


def test_constants_fold_and_weights_do_not():
    nodes = [
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Mul", ["x", "c"], ["y"]),
        helper.make_node("Mul", ["x", "c"], ["again"]),
        helper.make_node("Add", ["y", "again"], ["sum"]),
        helper.make_node("MatMul", ["sum", "w"], ["z"]),
    ]
    model = build(nodes, {"x": [2, 3], "w": [3, 3]}, {"z": [2, 3]}, {"a": np.float32(1), "b": np.float32(2)})
    weight = model.graph.inputs.pop()
    model.graph.initializers["w"] = weight
    fold_constants(model)
    assert ops(model) == ["Mul", "Add", "MatMul"]
    assert model.graph.initializers["w"].const_value is None


def test_attention_states_its_precision():
    node = helper.make_node("Attention", ["q", "q", "q"], ["y"])
    model = build([node], {"q": [1, 2, 3, 4]}, {"y": [1, 2, 3, 4]})
    compute_softmax_in_float32(model)
    (attention,) = list(model.graph)
    assert attention.attributes["softmax_precision"].value == TensorProto.FLOAT
