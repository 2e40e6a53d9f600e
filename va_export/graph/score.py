"""The score: visual tokens → sharing score and labels, one `SubspaceScore` node with its body and no weights."""

from __future__ import annotations

import onnx
from msgspec.structs import asdict
from onnx import TensorProto, helper

from va_export.graph.trace import IR_VERSION, OPSET
from va_export.ops import subspace_score as op
from va_export.ops.declaration import DOMAIN, VERSION
from va_export.settings import ScoreSettings


def score_model(settings: ScoreSettings, hidden_size: int, tuned_tokens: int) -> onnx.ModelProto:
    """(visual_count, hidden_size) float32 → sharing_score (visual_count,) float32 and labels (visual_count,) int64.

    Args:
        tuned_tokens: how many tokens a video usually has: decides which of its two forms the solver takes.
    """
    op.schema()
    node = helper.make_node(
        op.OP_TYPE, ["visual_tokens"], list(op.OUTPUTS), name="subspace_score", domain=DOMAIN, **asdict(settings)
    )
    graph = helper.make_graph(
        [node],
        "score",
        [helper.make_tensor_value_info("visual_tokens", TensorProto.FLOAT, ["visual_count", hidden_size])],
        [
            helper.make_tensor_value_info("sharing_score", TensorProto.FLOAT, ["visual_count"]),
            helper.make_tensor_value_info("labels", TensorProto.INT64, ["visual_count"]),
        ],
    )
    is_wide = op.is_wide_for(tuned_tokens, settings.pca_rank or hidden_size)
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)],
        functions=[op.function_body(with_pca=settings.pca_rank > 0, is_wide=is_wide)],
        ir_version=IR_VERSION,
        producer_name="va-export",
    )
