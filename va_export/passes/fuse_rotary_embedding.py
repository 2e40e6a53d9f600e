"""Fuse Hugging Face's rotary arithmetic into ONNX `RotaryEmbedding`-23.

    Add(Mul(x, c), Mul(Concat(Neg(x[d/2:]), x[:d/2]), s))   with c = Unsqueeze(cos, 1), s = Unsqueeze(sin, 1)
        →  RotaryEmbedding(x, cos[…, :d/2], sin[…, :d/2])

The angles come in twice, side by side (cos = [h | h]); the op takes one half of them. It holds for tables made that
way, which is how Hugging Face makes them, so the pass checks that each table is a Concat of one value
with itself.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript.rewriter import RewriteRuleSet, pattern


class _Rotary(pattern.RewriteRuleClassBase):
    def __init__(self) -> None:
        # The tables are shared by all layers, so a match may not remove them; what is left unused goes afterwards.
        super().__init__(name="RotaryEmbedding", remove_nodes=False)

    def pattern(self, op, x, cos, sin, axes_c, axes_s, low0, low1, high0, high1, axis0, axis1, step0, step1):  # type: ignore[no-untyped-def]
        first = op.Slice(x, low0, low1, axis0, step0)
        second = op.Slice(x, high0, high1, axis1, step1)
        rotated = op.Concat(op.Neg(second), first, axis=-1)
        return op.Mul(x, op.Unsqueeze(cos, axes_c)) + op.Mul(rotated, op.Unsqueeze(sin, axes_s))

    def check(self, op, x, cos, sin, low0, low1, high0, **_):  # type: ignore[no-untyped-def]
        result = pattern.MatchResult()
        head_dim = x.shape[-1] if x.shape is not None and len(x.shape) == 4 else None
        if not isinstance(head_dim, int):
            return result.fail("head_dim is not static", x)
        bounds = [_scalar(value) for value in (low0, low1, high0)]
        if bounds != [0, head_dim // 2, head_dim // 2]:
            return result.fail("not split into halves", x)
        if not (_is_doubled(cos) and _is_doubled(sin)):
            return result.fail("the angles are not two equal halves", cos)
        return result

    def rewrite(self, op, x, cos, sin, **_):  # type: ignore[no-untyped-def]
        half = x.shape[-1] // 2
        start, end, axis = (op.Constant(value_ints=[number]) for number in (0, half, 2))
        return op.RotaryEmbedding(x, op.Slice(cos, start, end, axis), op.Slice(sin, start, end, axis), interleaved=0)


def _scalar(value: ir.Value) -> int | None:
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None or tensor.size != 1 else int(tensor.numpy().reshape(-1)[0])


def _is_doubled(value: ir.Value | None) -> bool:
    """Whether the value is computed elementwise from Concat(h, h)."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "Concat":
            return len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
        if node.op_type == "Mul":  # times the attention factor, a scalar
            value = next((v for v in node.inputs if ir.convenience.get_const_tensor(v) is None), None)  # type: ignore[arg-type]
        elif node.op_type in ("Cast", "Cos", "Sin"):
            value = node.inputs[0]
        else:
            return False
    return False


def fuse_rotary_embedding(model: ir.Model) -> None:
    """Apply the rule wherever it matches; the shared slices of the tables are merged by `fold_constants` afterwards."""
    rule = _Rotary.rule()  # type: ignore[no-untyped-call]
    RewriteRuleSet([rule], commute=True).apply_to_model(model)
