"""Graph passes on the in-memory ONNX model, one a file, run in the order of `PASSES`.

They run before the weights are bound: a weight is an initializer without a value, told apart from a constant by
`is_weight`. A pass takes the model and changes it in place.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from va_export.passes.compute_softmax_in_float32 import compute_softmax_in_float32
from va_export.passes.fold_constants import fold_constants
from va_export.passes.fold_weight_transposes import fold_weight_transposes
from va_export.passes.fuse_rms_normalization import fuse_rms_normalization
from va_export.passes.fuse_rotary_embedding import fuse_rotary_embedding
from va_export.passes.remove_noop_slices import remove_noop_slices

PASSES: tuple[Callable[[ir.Model], None], ...] = (
    fold_constants,
    remove_noop_slices,
    fuse_rms_normalization,
    fuse_rotary_embedding,
    fold_weight_transposes,
    compute_softmax_in_float32,
    fold_constants,
)


def run_passes(model: ir.Model) -> ir.Model:
    """Run every pass in order; returns the same model."""
    for graph_pass in PASSES:
        graph_pass(model)
    return model
