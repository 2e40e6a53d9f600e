"""The custom op `ai.videoanchor::AnchoredAttention`, version 1, declared once.

Attention with two per-key vectors (VideoAnchor, arXiv 2509.25151, "attention regularisation"):

    O_i = Σ_j softmax_j(scale · q_i·k_j + key_log_gain[j]) · value_gain[j] · v_j

Key j is visible to query i iff j < kv_length and (not causal, or j ≤ i + kv_length − Sq). It is ONNX `Attention`-24
plus the two vectors. This file holds everything that the rest of the package knows of the op: its schema, its
PyTorch form, its function body in standard ops and its translation. The TensorRT plugin declares the same contract
in C++; a test holds the two against each other.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import onnx
import onnx.defs
import onnx.parser

from va_export.ops.declaration import DOMAIN, FLOAT_TYPES, VERSION, register_schema

if TYPE_CHECKING:
    from collections.abc import Callable

OP_TYPE = "AnchoredAttention"
INPUTS = ("query", "key", "value", "key_log_gain", "value_gain", "kv_length")
ATTRIBUTES = ("scale", "is_causal")
OUTPUT = "output"


@cache
def schema() -> onnx.defs.OpSchema:
    """The op's ONNX schema; the first call registers it with `onnx.defs`, which torch's exporter requires."""
    parameter = onnx.defs.OpSchema.FormalParameter
    option = onnx.defs.OpSchema.FormalParameterOption
    attribute = onnx.defs.OpSchema.Attribute
    attr_type = onnx.defs.OpSchema.AttrType
    return register_schema(
        OP_TYPE,
        doc=__doc__ or "",
        inputs=[
            parameter("query", "T", description="(batch, query_heads, q_len, head_dim)"),
            parameter("key", "T", description="(batch, kv_heads, kv_len, head_dim); kv_heads divides query_heads"),
            parameter("value", "T", description="(batch, kv_heads, kv_len, value_head_dim)"),
            parameter("key_log_gain", "tensor(float)", description="(batch, kv_len), log γ_K; 0 is plain"),
            parameter("value_gain", "tensor(float)", description="(batch, kv_len), γ_V; 1 is plain"),
            parameter(
                "kv_length",
                "tensor(int64)",
                description="(batch,), the number of valid keys; kv_len when absent",
                param_option=option.Optional,
            ),
        ],
        outputs=[parameter(OUTPUT, "T", description="(batch, query_heads, q_len, value_head_dim)")],
        type_constraints=[("T", list(FLOAT_TYPES), "The type of query, key, value and output.")],
        attributes=[
            attribute("scale", attr_type.FLOAT, "Factor on q·k, usually 1/√head_dim.", required=True),
            attribute(
                "is_causal",
                attr_type.INT,
                "1: bottom-right causal; 0: every valid key is visible.",
                required=True,
            ),
        ],
    )


# The exact form in standard ops, without a mask and without a logarithm: with g = exp(key_log_gain),
#     Attention(Q, K, [g·γ_V·V | g]) = Σ_j p_j [g_j γ_V,j v_j | g_j],
# whose first columns divided by its last are the output, for any softmax p of the unbiased logits. It runs in float32
# whatever T is: this is the portable form, there to be right. Attention's own alignment with nonpad_kv_seqlen is
# bottom-right, as the contract wants, and a row that sees no key comes out of it as zeros, hence the guarded quotient.
# What it costs follows the longest row and not the cache's capacity, for everything is cut to that first. Where all
# gains are neutral, as in every decode step, Attention alone is the answer. What lies in an unwritten slot may be NaN,
# and 0 · NaN is not 0: rows that are shorter than the longest have their slots zeroed.
_FUNCTION_BODY = f"""
<opset_import: ["" : 24], domain: "{DOMAIN}", doc_string: "Softmax attention with a gain on every key and value.">
{OP_TYPE} <scale, is_causal> (query, key, value, key_log_gain, value_gain, kv_length) => (output)
{{
  zero = Constant <value_float = 0.0> ()
  one = Constant <value_float = 1.0> ()
  i_zero = Constant <value_int = 0> ()
  i_one = Constant <value_int = 1> ()
  axis_0 = Constant <value_ints = [0]> ()
  axis_1 = Constant <value_ints = [1]> ()
  axis_2 = Constant <value_ints = [2]> ()
  axis_3 = Constant <value_ints = [3]> ()
  axes_1_3 = Constant <value_ints = [1, 3]> ()

  longest_row = ReduceMax <keepdims = 0> (kv_length)
  shortest_row = ReduceMin <keepdims = 0> (kv_length)
  longest = Max (longest_row, i_one)
  is_ragged = Less (shortest_row, longest)
  longest_vector = Unsqueeze (longest, axis_0)
  query_f32 = Cast <to = 1> (query)
  cut_key = Slice (key, axis_0, longest_vector, axis_2)
  cut_value = Slice (value, axis_0, longest_vector, axis_2)
  key_f32 = Cast <to = 1> (cut_key)
  value_f32 = Cast <to = 1> (cut_value)
  cut_log_gain = Slice (key_log_gain, axis_0, longest_vector, axis_1)
  cut_value_gain = Slice (value_gain, axis_0, longest_vector, axis_1)

  slots = Range (i_zero, longest, i_one)
  kv_length_column = Unsqueeze (kv_length, axis_1)
  is_valid_row = Less (slots, kv_length_column)
  is_valid = Unsqueeze (is_valid_row, axes_1_3)

  is_plain_key = Equal (cut_log_gain, zero)
  is_plain_value = Equal (cut_value_gain, one)
  is_plain_slot = And (is_plain_key, is_plain_value)
  plain_slot = Cast <to = 6> (is_plain_slot)
  all_plain = ReduceMin <keepdims = 0> (plain_slot)
  is_plain = Cast <to = 9> (all_plain)

  result = If (is_plain) <
    then_branch = plain () => (float[] plain_result) {{
      plain_result = If (is_ragged) <
        then_branch = ragged () => (float[] ragged_result) {{
          ragged_key = Where (is_valid, key_f32, zero)
          ragged_value = Where (is_valid, value_f32, zero)
          ragged_result = Attention <scale: float = @scale, is_causal: int = @is_causal, softmax_precision = 1>
            (query_f32, ragged_key, ragged_value, , , , kv_length)
        }},
        else_branch = even () => (float[] even_result) {{
          even_result = Attention <scale: float = @scale, is_causal: int = @is_causal, softmax_precision = 1>
            (query_f32, key_f32, value_f32, , , , kv_length)
        }}>
    }},
    else_branch = gained () => (float[] gained_result) {{
      valid_key = Where (is_valid, key_f32, zero)
      valid_value = Where (is_valid, value_f32, zero)
      key_gain_row = Exp (cut_log_gain)
      key_gain_raw = Unsqueeze (key_gain_row, axes_1_3)
      value_gain_raw = Unsqueeze (cut_value_gain, axes_1_3)
      key_gain = Where (is_valid, key_gain_raw, zero)
      both_raw = Mul (key_gain_raw, value_gain_raw)
      both_gains = Where (is_valid, both_raw, zero)
      weighted_value = Mul (valid_value, both_gains)
      value_rows = Shape <start = 0, end = 3> (valid_value)
      gain_shape = Concat <axis = 0> (value_rows, axis_1)
      gain_column = Expand (key_gain, gain_shape)
      augmented_value = Concat <axis = 3> (weighted_value, gain_column)

      attended = Attention <scale: float = @scale, is_causal: int = @is_causal, softmax_precision = 1>
        (query_f32, valid_key, augmented_value, , , , kv_length)

      value_width = Shape <start = 3, end = 4> (value)
      augmented_width = Add (value_width, axis_1)
      numerator = Slice (attended, axis_0, value_width, axis_3)
      denominator = Slice (attended, value_width, augmented_width, axis_3)
      sees_a_key = Greater (denominator, zero)
      quotient = Div (numerator, denominator)
      gained_result = Where (sees_a_key, quotient, zero)
    }}>
  output = CastLike (result, query)
}}
"""


@cache
def function_body() -> onnx.FunctionProto:
    """The op as an ONNX model-local function in opset-24 standard ops. A node that uses it must pass `kv_length`."""
    return onnx.parser.parse_function(_FUNCTION_BODY)


_TORCH_SCHEMA = (
    "(Tensor query, Tensor key, Tensor value, Tensor key_log_gain, Tensor value_gain, Tensor kv_length,"
    " float scale, bool is_causal) -> Tensor"
)


@cache
def torch_op() -> Callable[..., object]:
    """The op for PyTorch graphs: eager arithmetic outside of tracing, one opaque node inside `torch.export`."""
    import torch

    from va_export.anchor.attention import anchored_attention

    @torch.library.custom_op("va_export::anchored_attention", mutates_args=(), schema=_TORCH_SCHEMA)
    def op(query, key, value, key_log_gain, value_gain, kv_length, scale, is_causal):  # type: ignore[no-untyped-def]
        gains = (key_log_gain, value_gain, kv_length)
        return anchored_attention(query, key, value, *gains, scale=scale, is_causal=is_causal).contiguous()

    @op.register_fake
    def _(query, key, value, key_log_gain, value_gain, kv_length, scale, is_causal):  # type: ignore[no-untyped-def]
        return query.new_empty((*query.shape[:3], value.shape[3]))

    return op


def onnx_translation() -> dict[Callable[..., object], Callable[..., object]]:
    """The entry for `torch.onnx.export(custom_translation_table=…)`."""
    import onnxscript
    import torch

    schema()
    opset = onnxscript.values.Opset(DOMAIN, VERSION)

    def translate(query, key, value, key_log_gain, value_gain, kv_length, scale, is_causal):  # type: ignore[no-untyped-def]
        return opset.AnchoredAttention(
            query, key, value, key_log_gain, value_gain, kv_length, scale=scale, is_causal=int(is_causal)
        )

    torch_op()
    return {torch.ops.va_export.anchored_attention.default: translate}
