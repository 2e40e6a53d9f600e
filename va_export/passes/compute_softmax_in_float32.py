"""Ask for float32 inside every standard attention.

    Attention(…)  →  Attention(…, softmax_precision=FLOAT)

In float16 the sum over a thousand keys loses three bits; ONNX leaves the precision to the runtime unless it is stated.
"""

from __future__ import annotations

import onnx_ir as ir


def compute_softmax_in_float32(model: ir.Model) -> None:
    """State the precision on every `Attention` node of the graph."""
    for node in model.graph:
        if node.op_type == "Attention" and node.domain == "":
            node.attributes["softmax_precision"] = ir.AttrInt64("softmax_precision", int(ir.DataType.FLOAT))
