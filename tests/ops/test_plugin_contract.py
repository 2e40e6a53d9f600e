"""The op as Python declares it against the op as the built plugin library declares it."""

from __future__ import annotations

import pytest
from onnx.defs import OpSchema

from va_export.errors import VaExportError
from va_export.native import plugin_contract
from va_export.ops import anchored_attention, subspace_score
from va_export.ops.declaration import DOMAIN, OP_VERSIONS

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(bfloat16)": "bfloat16"}


@pytest.fixture(scope="module", params=[anchored_attention, subspace_score], ids=lambda op: op.OP_TYPE)
def op(request):
    return request.param


@pytest.fixture(scope="module")
def contract(op):
    try:
        document = plugin_contract()
    except VaExportError as error:
        pytest.skip(f"the plugin library is not installed: {error.what}")
    return next(entry for entry in document["ops"] if entry["name"] == op.OP_TYPE)


def test_name_version_and_namespace(contract, op):
    assert contract["namespace"] == DOMAIN
    assert contract["version"] == str(OP_VERSIONS[op.OP_TYPE])


def test_fields_are_the_attributes(contract, op):
    kinds = {OpSchema.AttrType.FLOAT: "float", OpSchema.AttrType.INT: "int"}
    attributes = {name: kinds[attribute.type] for name, attribute in op.schema().attributes.items()}
    assert {field["name"]: field["type"].rstrip("0123456789") for field in contract["fields"]} == attributes


def test_inputs_are_the_inputs(contract, op):
    inputs = op.schema().inputs
    assert [entry["name"] for entry in contract["inputs"]] == [entry.name for entry in inputs]
    optional = [entry.option == OpSchema.FormalParameterOption.Optional for entry in inputs]
    assert [entry["optional"] for entry in contract["inputs"]] == optional


def test_outputs_are_the_outputs(contract, op):
    assert [entry["name"] for entry in contract["outputs"]] == [entry.name for entry in op.schema().outputs]


def test_dtypes_are_the_type_constraint(contract, op):
    (constraint,) = op.schema().type_constraints
    assert sorted(contract["T"]) == sorted(_DTYPES[name] for name in constraint.allowed_type_strs)
