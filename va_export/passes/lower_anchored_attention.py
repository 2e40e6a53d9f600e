"""Express AnchoredAttention by ONNX `Attention`, for engines without a plugin (`--attention native`).

    AnchoredAttention(Q, K, V, key_log_gain, value_gain, kv_length)
        →  Attention(Q, K, V′, bias),   V′[j] = value_gain[j] · V[j],
           bias[i, j] = key_log_gain[j] where j ≤ i + kv_length − Sq (causal) or j < kv_length, −65504
           elsewhere

Exact for prefill, chunked prefill and decode on a static cache of capacity C. Why a dense bias (B, 1, Sq, C):
TensorRT's parser drops `nonpad_kv_seqlen` and aligns `is_causal` with the upper left corner, so on a static
cache, where Sq ≠ C, the causal structure has to be stated position by position; and its attention refuses a
mask beside its causal flag. Once there is a mask, the key gains ride in it for nothing. The mask-free form
with a widened V ([g·γ_V·V | g], divided by its last column) would save nothing here and needs K, Q and V
widened and copied.

Memory: the bias takes B · Sq · C elements of the model's type and is shared by every layer; 19 MB for a
prefill of 2304 tokens into 4096 slots in float16, 0.5 GB at 16k × 16k, where prefill should be cut into
chunks. V′ takes one more V cache of one layer.

Range: V′ and key_log_gain must be finite in the model's type: in float16 value_gain · |V| < 65504, so a gain
of 11 leaves |V| < 5950. The product is taken in float32 and rounded once. Slots from kv_length on may hold
anything finite whose score |scale · q·k| stays below 6e4 (in V anything, NaN included); a cache that starts
as zeros has no others. A row that sees no key gives 0.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.tape import Tape

from va_export.errors import VaExportError

_FLOAT = ir.DataType.FLOAT.value
# The lowest float16, for every type: far below any score, and a sum with it stays finite, which −∞ would not
# in a kernel that subtracts row maxima.
_MASKED = -65504.0


def lower_anchored_attention(model: ir.Model, domain: str = "ai.videoanchor") -> int:
    """Replace every AnchoredAttention node and drop the op's function; returns how many nodes there were.

    Raises:
        VaExportError: value_head_dim differs from head_dim, which TensorRT's attention does not take.
    """
    shared: dict[object, _Visibility] = {}
    nodes = [node for node in model.graph if (node.domain, node.op_type) == (domain, "AnchoredAttention")]
    for node in nodes:
        _check_widths(node)
        tape = Tape()
        key = _sharing_key(node)
        if key not in shared:
            shared[key] = _Visibility(tape, node)
        output = _attend(tape, node, shared[key])
        output.name = node.outputs[0].name
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], list(tape.nodes), [node.outputs[0]], [output]
        )
    for identifier in list(model.functions):
        if identifier[:2] == (domain, "AnchoredAttention"):
            del model.functions[identifier]
    return len(nodes)


class _Visibility:
    """What depends on positions and gains alone, computed once for all layers that share them."""

    def __init__(self, tape: Tape, node: ir.Node) -> None:
        query, key, _, key_log_gain, value_gain = (_input(node, index) for index in range(5))
        self.zero = tape.op("Constant", [], {"value_float": 0.0})
        zero = tape.op("Constant", [], {"value_int": 0})
        one = tape.op("Constant", [], {"value_int": 1})
        row_axis = tape.op("Constant", [], {"value_ints": [1]})
        q_len = tape.op("Squeeze", [tape.op("Shape", [query], {"start": 2, "end": 3})])
        kv_len_vector = tape.op("Shape", [key], {"start": 2, "end": 3})
        kv_length = node.inputs[5] if len(node.inputs) > 5 and node.inputs[5] is not None else kv_len_vector
        columns = tape.op("Range", [zero, tape.op("Squeeze", [kv_len_vector]), one])  # (C,)
        rows = tape.op("Unsqueeze", [tape.op("Range", [zero, q_len, one]), row_axis])  # (Sq, 1)
        lengths = tape.op("Unsqueeze", [kv_length, tape.op("Constant", [], {"value_ints": [1, 2, 3]})])
        if node.attributes["is_causal"].as_int():
            last_visible = tape.op("Add", [rows, tape.op("Sub", [lengths, q_len])])
        else:
            # 0 · rows spreads the result over Sq: ONNX Runtime wants the full mask.
            last_visible = tape.op("Add", [tape.op("Mul", [rows, zero]), tape.op("Sub", [lengths, one])])
        visible = tape.op("LessOrEqual", [columns, last_visible])  # (B, 1, Sq, C)
        gains = tape.op("Unsqueeze", [key_log_gain, tape.op("Constant", [], {"value_ints": [1, 2]})])
        masked = tape.op("Constant", [], {"value_float": _MASKED})
        self.bias = tape.op("CastLike", [tape.op("Where", [visible, gains, masked]), query])
        self.row_sees_a_key = tape.op("GreaterOrEqual", [last_visible, zero])  # (B, 1, Sq, 1)
        self.zero_like = tape.op("CastLike", [self.zero, query])
        column_axes = tape.op("Constant", [], {"value_ints": [1, 3]})
        valid = tape.op("Less", [columns, tape.op("Unsqueeze", [kv_length, row_axis])])  # (B, C)
        self.valid = tape.op("Unsqueeze", [valid, column_axes])  # (B, 1, C, 1)
        self.value_gain = tape.op("Unsqueeze", [value_gain, column_axes])


def _attend(tape: Tape, node: ir.Node, shared: _Visibility) -> ir.Value:
    query, key, value = (_input(node, index) for index in range(3))
    product = tape.op("Mul", [tape.op("Cast", [value], {"to": _FLOAT}), shared.value_gain])
    scaled = tape.op("CastLike", [tape.op("Where", [shared.valid, product, shared.zero]), value])
    scale = node.attributes["scale"].as_float()
    attended = tape.op("Attention", [query, key, scaled, shared.bias], {"scale": scale}, name=node.name)
    return tape.op("Where", [shared.row_sees_a_key, attended, shared.zero_like])


def _sharing_key(node: ir.Node) -> object:
    """Equal for nodes of equal positions, gains and types; a node of unknown query length shares nothing."""
    query = _input(node, 0)
    if query.shape is None or query.dtype is None:
        return node
    kv_length = node.inputs[5] if len(node.inputs) > 5 else None
    gains = (_input(node, 3), _input(node, 4))
    return (*gains, kv_length, node.attributes["is_causal"].as_int(), query.dtype, str(query.shape[2]))


def _check_widths(node: ir.Node) -> None:
    key, value = _input(node, 1), _input(node, 2)
    if key.shape is not None and value.shape is not None and key.shape[3] != value.shape[3]:
        raise VaExportError(
            f"TensorRT's attention wants keys as wide as values, not {key.shape[3]} and {value.shape[3]}",
            where=node.name or node.op_type,
            fix="build with --attention plugin",
        )


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        raise VaExportError(f"AnchoredAttention lacks its input {index}", where=node.name or node.op_type)
    return value
