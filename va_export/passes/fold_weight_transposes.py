"""Write linear weights the way they are read.

    MatMul(x, Transpose(W, perm=[1, 0]))  →  MatMul(x, W')     with W' = Wᵀ written to the file

A Transpose on a weight costs a second copy of it in every runtime that folds constants when it loads.
"""

from __future__ import annotations

import onnx_ir as ir

from va_export.passes.weight_marks import is_weight, mark_transposed


def fold_weight_transposes(model: ir.Model) -> None:
    """Fold where the transposed weight has no other use."""
    for node in list(model.graph):
        if node.op_type != "Transpose" or node.domain != "":
            continue
        weight, result = node.inputs[0], node.outputs[0]
        permutation = node.attributes.get("perm")
        if not is_weight(weight) or permutation is None or list(permutation.as_ints()) != [1, 0]:
            continue
        assert weight is not None
        if len(weight.uses()) != 1 or result.is_graph_output():
            continue
        result.replace_all_uses_with(weight)
        model.graph.remove(node, safe=True)
        mark_transposed(weight)
