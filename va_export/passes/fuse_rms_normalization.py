"""Fuse the arithmetic of a root-mean-square norm into one node.

    Mul(w, Cast(Mul(x', Reciprocal(Sqrt(Add(ReduceMean(Pow(x', 2)), ε))))))   with x' = Cast(x, float32)
        →  RMSNormalization(x, w, axis=-1, epsilon=ε, stash_type=float32)

The norm is computed in float32 whatever the model's precision, as in the arithmetic it replaces. The rule is
onnxscript's.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript.rewriter import RewriteRuleSet
from onnxscript.rewriter.rules.fusion._rms_normalization import rms_normalization_rules


def fuse_rms_normalization(model: ir.Model) -> None:
    """Apply the rule wherever it matches."""
    RewriteRuleSet(rms_normalization_rules).apply_to_model(model)
