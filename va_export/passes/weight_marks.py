"""How passes tell weights from constants, and what they may note on a weight."""

from __future__ import annotations

import onnx_ir as ir

_TRANSPOSED = "va_export.transposed"


def is_weight(value: ir.Value | None) -> bool:
    """A weight is an initializer whose value is not there yet: it is streamed in when the file is written."""
    return value is not None and value.is_initializer() and value.const_value is None


def mark_transposed(value: ir.Value) -> None:
    """Note that a 2-D weight is to be written transposed, and turn its shape round."""
    assert value.shape is not None and len(value.shape) == 2
    value.shape = ir.Shape([value.shape[1], value.shape[0]])
    value.meta[_TRANSPOSED] = not is_transposed(value)


def is_transposed(value: ir.Value) -> bool:
    """Whether the weight is to be written transposed."""
    return bool(value.meta.get(_TRANSPOSED, False))
