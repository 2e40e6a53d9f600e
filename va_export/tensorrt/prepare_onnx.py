"""Make an exported ONNX file ready for TensorRT's parser, without touching its weights.

Three changes, in memory: the cache's capacity becomes a number, since TensorRT's KV-cache update refuses a
dynamic one ("must have a static sequence length dimension"); custom ops that a plugin serves lose their
function bodies; and in native mode AnchoredAttention becomes standard attention. Weights in external files
stay references.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import onnx
import onnx_ir as ir

from va_export.documents import Form
from va_export.errors import VaExportError
from va_export.ops.declaration import DOMAIN, VERSION
from va_export.passes.lower_anchored_attention import lower_anchored_attention
from va_export.passes.strip_function_body import strip_function_body
from va_export.tensorrt.profiles import CAPACITY

Attention = Literal["plugin", "native"]
ATTENTIONS: tuple[Attention, ...] = get_args(Attention)
PLUGIN_VERSION = str(VERSION)


class PluginNode(Form, frozen=True):
    """A node that a plugin serves."""

    name: str
    op_type: str
    version: str = PLUGIN_VERSION
    namespace: str = DOMAIN


@dataclass(frozen=True)
class PreparedModel:
    """A model to parse.

    Attributes:
        model_bytes: the serialized ModelProto; external data is relative to the original file's folder.
        input_shapes: per input its dimensions, symbolic ones by name.
        plugin_nodes: the nodes left to plugins.
    """

    model_bytes: bytes
    input_shapes: Mapping[str, tuple[int | str, ...]]
    plugin_nodes: tuple[PluginNode, ...]


def prepare_onnx(
    onnx_path: Path, *, attention: Attention, capacity: int | None, has_plugin: Callable[[str], bool]
) -> PreparedModel:
    """Read `onnx_path` (its graph only) and rewrite it.

    Args:
        attention: who computes AnchoredAttention.
        capacity: the cache's number of slots; needed if the file has the dimension `capacity`.
        has_plugin: whether a plugin serves the op type of that name.

    Raises:
        VaExportError: the file is not ONNX, the capacity is missing, or an op has neither plugin nor
            function.
    """
    if attention not in ATTENTIONS:
        raise VaExportError(
            f"unknown attention {attention!r}", where="--attention", fix=f"use one of: {', '.join(ATTENTIONS)}"
        )
    try:
        model = ir.load(onnx_path)
    except FileNotFoundError as error:
        raise VaExportError("the ONNX file does not exist", where=onnx_path) from error
    except Exception as error:  # protobuf and onnx_ir each have their own
        raise VaExportError(f"the file cannot be read as ONNX: {error}", where=onnx_path) from error
    _fix_capacity(model, capacity, onnx_path)
    if attention == "native":
        lower_anchored_attention(model)
    _adapt_attention(model)
    nodes = _hand_over_to_plugins(model, has_plugin, attention, onnx_path)
    shapes = {str(value.name): _shape(value) for value in model.graph.inputs}
    return PreparedModel(_serialize(model, onnx_path), shapes, nodes)


def _fix_capacity(model: ir.Model, capacity: int | None, onnx_path: Path) -> None:
    values = [*model.graph.inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)]
    for value in values:
        if value.shape is None or CAPACITY not in _shape(value):
            continue
        if capacity is None:
            raise VaExportError(
                f"{value.name} has a dynamic cache capacity, which TensorRT does not take",
                where=onnx_path,
                fix="give --max-kv-cache-capacity",
            )
        value.shape = ir.Shape([capacity if d == CAPACITY else d for d in _shape(value)])


def _adapt_attention(model: ir.Model) -> None:
    """Let standard attention be computed by several kernels where no fused one exists, as for float32.

    Without leave the builder fails there ("Attention operation was not supported by a dedicated kernel"). The
    attribute is the parser's own; ONNX Runtime would refuse it, so it is set on the parsed copy only. The parser in
    turn refuses softmax_precision, which tells ONNX Runtime what TensorRT's kernels do anyway.
    """
    for node in model.graph.all_nodes():
        if node.domain == "" and node.op_type == "Attention":
            node.attributes.add(ir.AttrInt64("TRT_decomposable", 1))
            node.attributes.pop("softmax_precision", None)


def _hand_over_to_plugins(
    model: ir.Model, has_plugin: Callable[[str], bool], attention: Attention, onnx_path: Path
) -> tuple[PluginNode, ...]:
    nodes = [node for node in model.graph.all_nodes() if node.domain == DOMAIN]
    bodies = {identifier[1] for identifier in model.functions if identifier[0] == DOMAIN}
    served = {node.op_type for node in nodes if has_plugin(node.op_type)}
    if attention == "plugin" and (lacking := {"AnchoredAttention"} & {n.op_type for n in nodes} - served):
        raise VaExportError(
            f"no plugin serves {', '.join(lacking)} (version {PLUGIN_VERSION}, namespace {DOMAIN})",
            where=onnx_path,
            fix="give the plugin library, or build with --attention native",
        )
    if orphans := {node.op_type for node in nodes} - served - bodies:
        raise VaExportError(f"{', '.join(sorted(orphans))} has neither a plugin nor a function body", where=onnx_path)
    strip_function_body(model, served, DOMAIN, PLUGIN_VERSION)
    return tuple(PluginNode(node.name or "", node.op_type) for node in nodes if node.op_type in served)


def _shape(value: ir.Value) -> tuple[int | str, ...]:
    if value.shape is None:
        raise VaExportError(f"{value.name} has no shape", where=str(value.name), fix="export the model again")
    return tuple(
        d if isinstance(d, int) else (d.value if isinstance(d.value, str) else f"{value.name}[{axis}]")
        for axis, d in enumerate(value.shape)
    )


def _serialize(model: ir.Model, onnx_path: Path) -> bytes:
    # External tensors serialize as references (location, offset, length), so this costs the graph's size
    # only.
    proto: onnx.ModelProto = ir.to_proto(model)
    try:
        serialized: bytes = proto.SerializeToString()
    except Exception as error:  # protobuf's limit of 2 GiB on one message
        raise VaExportError(
            f"the graph cannot be serialized: {error}",
            where=onnx_path,
            fix="keep the weights in external data files",
        ) from error
    return serialized
