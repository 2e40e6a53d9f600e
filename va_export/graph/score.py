"""The score: visual tokens → sharing score and labels, one `SubspaceScore` node with its body and no weights."""

from __future__ import annotations

import onnx
from msgspec.structs import asdict
from onnx import TensorProto, helper

from va_export.bundle.tensors import TensorInfo
from va_export.graph.trace import IR_VERSION, OPSET
from va_export.models.component import Component
from va_export.ops import subspace_score as op
from va_export.ops.declaration import DOMAIN, VERSION
from va_export.settings import ScoreSettings


def score_model(component: Component, settings: ScoreSettings, tuned_tokens: int) -> onnx.ModelProto:
    """The graph of `models.component.score_component`.

    Args:
        tuned_tokens: how many tokens a video usually has: decides which of its two forms the solver takes.
    """
    op.schema()
    (tokens,) = component.inputs
    node = helper.make_node(
        op.OP_TYPE, [tokens.name], list(op.OUTPUTS), name="subspace_score", domain=DOMAIN, **asdict(settings)
    )
    graph = helper.make_graph(
        [node],
        component.name,
        [_value_info(tokens)],
        [_value_info(output) for output in component.outputs],
    )
    hidden_size = int(tokens.shape[1])
    is_wide = op.is_wide_for(tuned_tokens, settings.pca_rank or hidden_size)
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)],
        functions=[op.function_body(with_pca=settings.pca_rank > 0, is_wide=is_wide)],
        ir_version=IR_VERSION,
        producer_name="va-export",
    )


def _value_info(tensor: TensorInfo) -> onnx.ValueInfoProto:
    types = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    return helper.make_tensor_value_info(tensor.name, types[tensor.dtype], tensor.shape)
