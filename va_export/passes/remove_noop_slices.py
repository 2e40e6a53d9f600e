"""Remove slices that keep everything.

    Slice(x, starts=[0], ends=[INT64_MAX or ≥ the static size], axes, steps=[1])  →  x

`tensor[:, None]` and the like trace to such slices on every axis that they do not name.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

_INT64_MAX = np.iinfo(np.int64).max


def remove_noop_slices(model: ir.Model) -> None:
    """Replace the uses of every slice that keeps all of its input."""
    for node in list(model.graph):
        if node.op_type == "Slice" and node.domain == "" and _keeps_all(node):
            source, result = node.inputs[0], node.outputs[0]
            assert source is not None
            if result.is_graph_output():
                continue
            result.replace_all_uses_with(source)
            model.graph.remove(node, safe=True)


def _keeps_all(node: ir.Node) -> bool:
    source = node.inputs[0]
    values = [ir.convenience.get_const_tensor(value) if value is not None else None for value in node.inputs[1:]]
    if len(values) != 4 or source is None or any(value is None for value in values):
        return False
    starts, ends, axes, steps = (value.numpy().reshape(-1) for value in values if value is not None)
    if (starts != 0).any() or (steps != 1).any():
        return False
    for end, axis in zip(ends, axes, strict=True):
        size = source.shape[int(axis)] if source.shape is not None else None
        if end != _INT64_MAX and not (isinstance(size, int) and end >= size):
            return False
    return True
