"""External data must lie beside its ONNX file, wherever in the file it is referred to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from refusals import refused

from va_export.runtime.backends.external_data import check_external_data


def external(location: str, offset: str = "0", length: str = "16") -> TensorProto:
    tensor = numpy_helper.from_array(np.arange(4, dtype=np.float32), "weight")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph_of(nodes: list[onnx.NodeProto], weights: list[TensorProto]) -> onnx.GraphProto:
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    return helper.make_graph(nodes, "g", [], [output], weights)


def as_weight(tensor: TensorProto) -> onnx.ModelProto:
    return helper.make_model(graph_of([helper.make_node("Identity", ["weight"], ["y"])], [tensor]))


def as_constant(tensor: TensorProto) -> onnx.ModelProto:
    return helper.make_model(graph_of([helper.make_node("Constant", [], ["y"], value=tensor)], []))


def in_a_branch(tensor: TensorProto) -> onnx.ModelProto:
    branch = as_constant(tensor).graph
    condition = numpy_helper.from_array(np.array(True), "condition")
    node = helper.make_node("If", ["condition"], ["y"], then_branch=branch, else_branch=branch)
    return helper.make_model(graph_of([node], [condition]))


def in_a_function(tensor: TensorProto) -> onnx.ModelProto:
    body = [helper.make_node("Constant", [], ["y"], value=tensor)]
    function = helper.make_function("d", "F", [], ["y"], body, [helper.make_opsetid("", 21)])
    model = helper.make_model(graph_of([helper.make_node("F", [], ["y"], domain="d")], []))
    model.functions.append(function)
    return model


def in_a_sparse_weight(tensor: TensorProto) -> onnx.ModelProto:
    model = as_constant(numpy_helper.from_array(np.zeros(4, np.float32)))
    sparse = model.graph.sparse_initializer.add(dims=[100])
    sparse.values.CopyFrom(tensor)
    sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(4), "i"))
    return model


Place = Callable[[TensorProto], onnx.ModelProto]
PLACES: list[Place] = [as_weight, as_constant, in_a_branch, in_a_function, in_a_sparse_weight]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "onnx"
    folder.mkdir()
    (folder / "weights.data").write_bytes(bytes(16))
    (tmp_path / "secret").write_bytes(bytes(16))
    return folder / "model.onnx"


@pytest.mark.parametrize("place", PLACES)
def test_data_beside_the_file_is_fine(path: Path, place: Place) -> None:
    onnx.save(place(external("weights.data")), path)
    check_external_data(path)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "sub/../../secret", ""])
def test_data_elsewhere_is_refused(path: Path, place: Place, location: str) -> None:
    onnx.save(place(external(location)), path)
    with refused(path, "weight", repr(location)):
        check_external_data(path)


def test_a_link_to_elsewhere_is_refused(path: Path) -> None:
    (path.parent / "link").symlink_to(path.parents[1] / "secret")
    onnx.save(as_weight(external("link")), path)
    with refused(path, "weight", "link"):
        check_external_data(path)


@pytest.mark.parametrize(("location", "offset", "length", "named"), [
    ("none.data", "0", "16", ["none.data", 16]),
    ("weights.data", "8", "16", ["weights.data", 24]),
    ("weights.data", "-8", "16", ["weights.data", -8]),
    ("weights.data", "0", "many", ["weights.data", "many"]),
])  # fmt: skip
def test_data_that_is_not_there_is_refused(
    path: Path, location: str, offset: str, length: str, named: list[object]
) -> None:
    onnx.save(as_weight(external(location, offset, length)), path)
    with refused(path, "weight", *named):
        check_external_data(path)


@pytest.mark.parametrize("content", [b"\xff" * 100, b"no model"])
def test_a_file_that_is_no_model_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with refused(path, "ONNX"):
        check_external_data(path)


@pytest.mark.parametrize("text", [b"weights.data", b"length", b"4321"])
def test_a_reference_that_is_no_text_is_refused(path: Path, text: bytes) -> None:
    onnx.save(as_weight(external("weights.data", "0", "4321")), path)
    content = path.read_bytes()
    assert content.count(text) == 1
    path.write_bytes(content.replace(text, b"\xff" * len(text)))
    with refused(path, "weight"):
        check_external_data(path)
