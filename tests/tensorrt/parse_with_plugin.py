"""Run as a program: parse a node that a plugin serves, with a plugin made in Python. Prints PARSED on success.

With the argument `bare` it uses TensorRT-RTX as it comes; with `first` the module is imported before the package's
loader sees it; with `loader` the loader imports it.
"""

from __future__ import annotations

import sys

import numpy as np
from onnx import parser

MODEL = """
<ir_version: 10, opset_import: ["" : 24, "ai.videoanchor" : 1]>
g (float[4] x) => (float[4] y) {
    y = ai.videoanchor.PythonOp <scale = 2.0, plugin_version = "1", plugin_namespace = "ai.videoanchor"> (x)
}
"""


def load(mode: str):  # type: ignore[no-untyped-def]
    if mode != "loader":
        import tensorrt_rtx

        if mode == "bare":
            return tensorrt_rtx
    from va_export.tensorrt.api import load_tensorrt

    return load_tensorrt("tensorrt-rtx").module


def register_creator(trt) -> object:  # type: ignore[no-untyped-def]
    class Plugin(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
        def __init__(self) -> None:
            for base in (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
                base.__init__(self)
            self.num_outputs = 1
            self.plugin_name, self.plugin_version, self.plugin_namespace = "PythonOp", "1", "ai.videoanchor"

        def get_capability_interface(self, kind):  # type: ignore[no-untyped-def]
            return self

        def get_output_data_types(self, types):  # type: ignore[no-untyped-def]
            return [types[0]]

        def get_output_shapes(self, shapes, shape_inputs, builder):  # type: ignore[no-untyped-def]
            return [shapes[0]]

        def get_fields_to_serialize(self):  # type: ignore[no-untyped-def]
            return trt.PluginFieldCollection([])

        def clone(self):  # type: ignore[no-untyped-def]
            return Plugin()

    class Creator(trt.IPluginCreatorV3One):
        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_version, self.plugin_namespace = "PythonOp", "1", "ai.videoanchor"
            field = trt.PluginField("scale", np.array([], np.float32), trt.PluginFieldType.FLOAT32)
            self.field_names = trt.PluginFieldCollection([field])

        def create_plugin(self, name, fields, phase):  # type: ignore[no-untyped-def]
            return Plugin()

    creator = Creator()
    assert trt.get_plugin_registry().register_creator(creator, "ai.videoanchor")
    return creator


def main() -> None:
    trt = load(sys.argv[1])
    creator = register_creator(trt)
    logger = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(logger).create_network(1)
    onnx_parser = trt.OnnxParser(network, logger)
    parsed = onnx_parser.parse(parser.parse_model(MODEL).SerializeToString())
    print("PARSED" if parsed and network.get_layer(0).type == trt.LayerType.PLUGIN_V3 else "FAILED", creator)


if __name__ == "__main__":
    main()
