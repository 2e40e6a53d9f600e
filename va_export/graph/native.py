"""A component without the custom op: the same weights, attention in standard ops."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from va_export.passes.lower_anchored_attention import lower_anchored_attention


def write_native_form(component: Path, path: Path) -> None:
    """Write `path`, a second graph over `component`'s external data, which must lie in the same folder."""
    model = ir.load(component)
    lower_anchored_attention(model)
    ir.save(model, path)  # tensors that are external already stay where they are
