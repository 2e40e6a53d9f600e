"""ONNX Runtime on a CPU with a model that is larger than the memory.

Its CPU provider computes float16 in float32. By default it converts all weights when a session opens and keeps both,
and packs float32 weights into copies of its own. Without constant folding and packing the weights stay in the mapped
file, which the system may drop and read again, and each is converted where it is used. The order of nodes matters: in
ONNX Runtime's default order many conversions run before what uses them; by priority each runs just before.

Measured with ONNX Runtime 1.32 on a float16 decoder of 0.99 GB (24 layers; its output matrix takes 0.54 GB in float32):
anonymous memory 2.09 GB (2.66 GB while opening) by default, 1.45 GB without folding, 0.57 GB by priority besides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from va_export.host_memory import available_memory

if TYPE_CHECKING:
    import onnxruntime as ort

RESIDENT_FACTOR = 2.7
"""Peak memory of opening a session by default, over its float16 weights."""


CHUNK = 512
"""Positions of a prompt that are prefilled at once."""


def prefill_bytes(num_heads: int, length: int) -> int:
    """Memory of a prefill beside the weights."""
    return min(CHUNK, length) * _query_bytes(num_heads, length)


def prefill_chunk(num_heads: int, length: int, *, streams: bool, available: int | None = None) -> int:
    """Positions to prefill at once.

    Args:
        streams: each chunk converts all weights once more, so there are as few as a quarter of the memory allows.
        available: bytes; default: what the machine has left.
    """
    if not streams:
        return CHUNK
    free = available_memory() if available is None else available
    return max(CHUNK, free // 4 // _query_bytes(num_heads, length))


def _query_bytes(num_heads: int, length: int) -> int:
    """Memory of one query: ONNX Runtime's Attention holds all heads' logits, and their softmax."""
    return 2 * 4 * num_heads * length


def must_map_weights(weights: int, activations: int, available: int | None = None) -> bool:
    """Whether the weights of all ONNX files in a bundle are too many to hold at once.

    Args:
        weights: their bytes.
        activations: bytes that a prefill takes beside them.
        available: bytes; default: what the machine has left.
    """
    free = available_memory() if available is None else available
    return RESIDENT_FACTOR * weights + activations > free


def session_options(streams: bool) -> ort.SessionOptions:
    """Options of a session; with `streams`, open it with `disabled_optimizers=["ConstantFolding"]` besides."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    if streams:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        options.enable_cpu_mem_arena = False  # the arena keeps what it was once given
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options
