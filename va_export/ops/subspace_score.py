"""The custom op `ai.videoanchor::SubspaceScore`, version 1: its schema.

Sharing score of every visual token of a video (VideoAnchor, arXiv 2509.25151, "Subspace-to-Scaler"): sparse
self-expression by ADMM, spectral clustering of its affinity, row sum times cluster size, min-max normalised. The
eager reference is `va_export.anchor.subspace_score`, whose arguments the attributes repeat. Bundles of this version
compute it on the host (`runtime/scoring.py`); no graph holds the op yet, and its function body and plugin are declared
here when they come.
"""

from __future__ import annotations

from dataclasses import fields
from functools import cache

import onnx.defs

from va_export.ops.declaration import FLOAT_TYPES, register_schema
from va_export.settings import ScoreSettings

OP_TYPE = "SubspaceScore"


@cache
def schema() -> onnx.defs.OpSchema:
    """The op's ONNX schema; the first call registers it with `onnx.defs`. Attributes and defaults are those of
    `ScoreSettings`."""
    parameter = onnx.defs.OpSchema.FormalParameter
    attribute = onnx.defs.OpSchema.Attribute
    return register_schema(
        OP_TYPE,
        doc=__doc__ or "",
        inputs=[parameter("tokens", "T", description="(N, D), visual tokens as they enter the decoder")],
        outputs=[
            parameter("sharing_score", "tensor(float)", description="(N,), in [0, 1]"),
            parameter("labels", "tensor(int64)", description="(N,), the subspace of each token"),
        ],
        type_constraints=[("T", list(FLOAT_TYPES), "The type of the tokens; arithmetic is float32.")],
        attributes=[
            attribute(field.name, onnx.helper.make_attribute(field.name, field.default))
            for field in fields(ScoreSettings)
        ],
    )
