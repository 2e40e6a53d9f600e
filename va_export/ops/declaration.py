"""What every custom op shares: the domain, its version, and the registration of schemas."""

from __future__ import annotations

from collections.abc import Sequence

import onnx.defs

DOMAIN = "ai.videoanchor"
VERSION = 1
# Every op of the domain and its newest version; the manifest records it.
OP_VERSIONS = {"AnchoredAttention": 1, "SubspaceScore": 1}
FLOAT_TYPES = ("tensor(float)", "tensor(float16)", "tensor(bfloat16)")


def register_schema(
    op_type: str,
    *,
    doc: str,
    inputs: Sequence[onnx.defs.OpSchema.FormalParameter],
    outputs: Sequence[onnx.defs.OpSchema.FormalParameter],
    type_constraints: Sequence[tuple[str, list[str], str]],
    attributes: Sequence[onnx.defs.OpSchema.Attribute],
) -> onnx.defs.OpSchema:
    """Build an op's schema and register it with `onnx.defs` (once in a process; a second import finds it there)."""
    schema = onnx.defs.OpSchema(
        op_type,
        DOMAIN,
        VERSION,
        doc=doc,
        inputs=inputs,
        outputs=outputs,
        type_constraints=type_constraints,
        attributes=attributes,
    )
    if not onnx.defs.has(op_type, VERSION, DOMAIN):
        onnx.defs.register_schema(schema)
    return schema
