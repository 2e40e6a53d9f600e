"""The function body of `SubspaceScore`, part by part as in `va_export.anchor`, built from standard ONNX operators."""
