from __future__ import annotations

import onnx
import onnx_ir as ir

from va_export.passes.strip_function_body import strip_function_body

TEXT = """
<ir_version: 10, opset_import: ["" : 24, "ai.videoanchor" : 1, "other" : 1]>
g (float[4] x) => (float[4] y) {
    a = ai.videoanchor.Served <scale = 2.0> (x)
    b = ai.videoanchor.Portable (a)
    c = other.Served (b)
    y = ai.videoanchor.Served <scale = 3.0> (c)
}
<domain: "ai.videoanchor", opset_import: ["" : 24]> Served <scale> (x) => (y) { y = Identity (x) }
<domain: "ai.videoanchor", opset_import: ["" : 24]> Portable (x) => (y) { y = Relu (x) }
<domain: "other", opset_import: ["" : 24]> Served (x) => (y) { y = Identity (x) }
"""


def test_only_served_ops_of_the_domain_are_handed_over() -> None:
    model = ir.from_proto(onnx.parser.parse_model(TEXT))
    assert strip_function_body(model, {"Served"}, "ai.videoanchor", "1") == 2
    assert {identifier[:2] for identifier in model.functions} == {
        ("ai.videoanchor", "Portable"),
        ("other", "Served"),
    }
    marked = {
        node.name or index: {name: attribute.value for name, attribute in node.attributes.items()}
        for index, node in enumerate(model.graph)
    }
    attributes = list(marked.values())
    assert attributes[0] == {"scale": 2.0, "plugin_version": "1", "plugin_namespace": "ai.videoanchor"}
    assert attributes[1] == {} and attributes[2] == {}
    assert attributes[3]["scale"] == 3.0 and attributes[3]["plugin_version"] == "1"


def test_without_served_ops_nothing_changes() -> None:
    model = ir.from_proto(onnx.parser.parse_model(TEXT))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert strip_function_body(model, set(), "ai.videoanchor", "1") == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
