"""Run as a program with a plugin library's path: what TensorRT-RTX makes of it, as one JSON object on stdout.

A process of its own, because the parser wants `libtensorrt_rtx.so` on LD_LIBRARY_PATH and ends the process where it
finds none.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tensorrt_rtx as trt
from onnx import ModelProto, TensorProto, helper

DOMAIN = "ai.videoanchor"
HALF, FLOAT, INT64, INT32 = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32
Input = tuple[str, int, tuple[int | str, ...]]
INPUTS: list[Input] = [
    ("query", HALF, ("B", 8, "S", 64)),
    ("key", HALF, ("B", 2, "T", 64)),
    ("value", HALF, ("B", 2, "T", 32)),
    ("key_log_gain", FLOAT, ("B", "T")),
    ("value_gain", FLOAT, ("B", "T")),
    ("kv_length", INT64, ("B",)),
]
PROFILE = {"B": (1, 1, 2), "S": (1, 5, 33), "T": (1, 9, 64), "N": (16, 64, 2048)}  # smallest, typical, largest


class CollectingLogger(trt.ILogger):  # type: ignore[misc]
    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity <= trt.ILogger.ERROR:
            self.errors.append(message)

    def take(self) -> list[str]:
        """The plugin's own messages since the last call."""
        errors, self.errors = self.errors, []
        return [message for message in errors if message.startswith(("AnchoredAttention", "SubspaceScore"))]


LOGGER = CollectingLogger()
BUILDER = trt.Builder(LOGGER)


def model(inputs: list[Input], **attributes: object) -> ModelProto:
    """One AnchoredAttention node; an attribute given as None is left out."""
    defaults = {"scale": 0.125, "is_causal": 1, "plugin_version": "1", "plugin_namespace": DOMAIN}
    given = {name: value for name, value in (defaults | attributes).items() if value is not None}
    node = helper.make_node("AnchoredAttention", [i[0] for i in inputs], ["out"], name="attn", domain=DOMAIN, **given)
    graph_inputs = [helper.make_tensor_value_info(*i) for i in inputs]
    output = helper.make_tensor_value_info("out", inputs[0][1], None)
    graph = helper.make_graph([node], "graph", graph_inputs, [output])
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def score_model(inputs: list[Input], **attributes: object) -> ModelProto:
    """One SubspaceScore node with the paper's settings; an attribute given as None is left out."""
    defaults: dict[str, object] = {"n_subspaces": 4, "pca_rank": 0, "max_iter": 10000}
    defaults |= {"rho": 300.0, "alpha_e": 800.0, "alpha_z": 800.0, "eps": 2e-4}
    defaults |= {"plugin_version": "1", "plugin_namespace": DOMAIN}
    given = {name: value for name, value in (defaults | attributes).items() if value is not None}
    names = [i[0] for i in inputs]
    node = helper.make_node("SubspaceScore", names, ["score", "labels"], name="attn", domain=DOMAIN, **given)
    outputs = [
        helper.make_tensor_value_info(name, kind, None) for name, kind in zip(node.output, (FLOAT, INT64), strict=True)
    ]
    graph = helper.make_graph([node], "graph", [helper.make_tensor_value_info(*i) for i in inputs], outputs)
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def build(inputs: list[Input], **attributes: object) -> dict[str, Any]:
    """One AnchoredAttention node, parsed and built."""
    return build_model(model(inputs, **attributes), inputs)


def build_score(dtype: int, tokens: int | str, dim: int, **attributes: object) -> dict[str, Any]:
    """One SubspaceScore node, parsed and built."""
    inputs: list[Input] = [("tokens", dtype, (tokens, dim))]
    return build_model(score_model(inputs, **attributes), inputs)


def build_model(document: ModelProto, inputs: list[Input]) -> dict[str, Any]:
    """Parses and builds ahead of time for SM80 and SM120."""
    network = BUILDER.create_network(0)
    parser = trt.OnnxParser(network, LOGGER)
    if not parser.parse(document.SerializeToString()):
        return {"engine_bytes": 0, "messages": LOGGER.take()}
    config = BUILDER.create_builder_config()
    config.num_compute_capabilities = 2
    config.set_compute_capability(trt.ComputeCapability.SM80, 0)
    config.set_compute_capability(trt.ComputeCapability.SM120, 1)
    profile = BUILDER.create_optimization_profile()
    for name, _, shape in inputs:
        shapes = [[PROFILE[d][which] if isinstance(d, str) else d for d in shape] for which in range(3)]
        profile.set_shape(name, *shapes)
    config.add_optimization_profile(profile)
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    described = [[str(output.dtype), list(output.shape)] for output in outputs]
    result = {"output": described[0], "outputs": described}
    engine = BUILDER.build_serialized_network(network, config)
    return {**result, "engine_bytes": 0 if engine is None else engine.nbytes, "messages": LOGGER.take()}


def replaced(*changes: Input) -> list[Input]:
    """INPUTS with these in the place of those of the same name."""
    by_name = {change[0]: change for change in changes}
    return [by_name.get(i[0], i) for i in INPUTS]


def create(creator: Any, **fields: Any) -> dict[str, Any]:
    kinds = {np.float32: trt.PluginFieldType.FLOAT32, np.int32: trt.PluginFieldType.INT32}
    kinds |= {np.int64: trt.PluginFieldType.INT64}
    values = {name: np.array([value]) for name, value in fields.items()}
    collection = [trt.PluginField(name, value, kinds[value.dtype.type]) for name, value in values.items()]
    plugin = creator.create_plugin("attn", trt.PluginFieldCollection(collection), trt.TensorRTPhase.BUILD)
    return {"created": plugin is not None, "messages": LOGGER.take()}


def main(library: str) -> None:
    registry = trt.get_plugin_registry()
    registry.load_library(library)
    creator = registry.get_creator("AnchoredAttention", "1", DOMAIN)
    scale, causal = np.float32(0.125), np.int32(1)
    result = {
        "fields": [[field.name, str(field.type)] for field in creator.field_names],
        "create": {
            "int32": create(creator, scale=scale, is_causal=causal),
            "int64": create(creator, scale=scale, is_causal=np.int64(0)),
            "missing": create(creator, scale=scale),
            "unknown": create(creator, scale=scale, is_causal=causal, window=causal),
            "wrong_type": create(creator, scale=np.int32(1), is_causal=causal),
        },
        "build": {
            "six_inputs": build(INPUTS),
            "five_inputs": build(INPUTS[:5]),
            "bfloat16": build([(n, TensorProto.BFLOAT16 if t == HALF else t, s) for n, t, s in INPUTS]),
            "float32": build([(n, FLOAT if t == HALF else t, s) for n, t, s in INPUTS]),
            "four_inputs": build(INPUTS[:4]),
            "rank": build(replaced(("value_gain", FLOAT, ("B", "T", 1)))),
            "mixed_types": build(replaced(("key", FLOAT, ("B", 2, "T", 64)))),
            "gain_type": build(replaced(("key_log_gain", HALF, ("B", "T")))),
            "length_type": build(replaced(("kv_length", INT32, ("B",)))),
            "kv_heads": build(replaced(("key", HALF, ("B", 3, "T", 64)), ("value", HALF, ("B", 3, "T", 32)))),
            "kv_heads_differ": build(replaced(("key", HALF, ("B", 4, "T", 64)))),
            "head_dim": build(replaced(("query", HALF, ("B", 8, "S", 260)), ("key", HALF, ("B", 2, "T", 260)))),
            "profile": build(replaced(("value_gain", FLOAT, ("B", 7)))),
            "no_causal": build(INPUTS, is_causal=None),
            "scale": build(INPUTS, scale=-1.0),
        },
        "score": {
            "float16": build_score(HALF, "N", 64),
            "bfloat16": build_score(TensorProto.BFLOAT16, "N", 64, pca_rank=8),
            "float32": build_score(FLOAT, 100, 96),
            "type": build_score(INT32, "N", 64),
            "few_tokens": build_score(HALF, "N", 64, n_subspaces=17),
            "rank": build_score(HALF, "N", 64, pca_rank=65),
            "settings": build_score(HALF, "N", 64, rho=-1.0),
            "missing": build_score(HALF, "N", 64, eps=None),
        },
    }
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
