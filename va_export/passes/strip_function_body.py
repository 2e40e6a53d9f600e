"""Hand a custom op over to a TensorRT plugin.

    ai.videoanchor::Op(…) with a model-local function ai.videoanchor::Op
        →  ai.videoanchor::Op(…) {plugin_version, plugin_namespace} without the function

TensorRT's parser inlines a local function even where a plugin of the same name is registered, and finds a
plugin by the node's type and these two attributes. Only ops that the caller says are served are touched; the
others keep their bodies and are built from standard layers.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir


def strip_function_body(model: ir.Model, served_ops: Collection[str], domain: str, plugin_version: str) -> int:
    """Do so for every node of `domain` whose type is in `served_ops`; returns how many nodes there are.

    The plugins' namespace is the ops' domain.
    """
    count = 0
    for node in model.graph.all_nodes():
        if node.domain == domain and node.op_type in served_ops:
            node.attributes.add(ir.AttrString("plugin_version", plugin_version))
            node.attributes.add(ir.AttrString("plugin_namespace", domain))
            count += 1
    for identifier in list(model.functions):
        if identifier[0] == domain and identifier[1] in served_ops:
            del model.functions[identifier]
    return count
