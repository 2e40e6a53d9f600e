"""The parameter struct of the C interface (plugins/anchored_attention/anchored_attention.h), for ctypes."""

from __future__ import annotations

import ctypes

MAX_HEAD_DIM = 256
MAX_GRID = 65535  # of batch and of kv_heads
DTYPE_CODES = {"float16": 0, "bfloat16": 1, "float32": 2}


class AttentionStrides(ctypes.Structure):
    """Elements between neighbours on the batch, head and position axes; the last axis is contiguous."""

    _fields_ = (
        ("batch", ctypes.c_int64),
        ("head", ctypes.c_int64),
        ("position", ctypes.c_int64),
    )


class AnchoredAttentionParams(ctypes.Structure):
    """Field by field what `VaAnchoredAttentionParams` is; the C side refuses another `struct_bytes`."""

    _fields_ = (
        ("struct_bytes", ctypes.c_size_t),
        ("query", ctypes.c_void_p),
        ("key", ctypes.c_void_p),
        ("value", ctypes.c_void_p),
        ("key_log_gain", ctypes.c_void_p),
        ("value_gain", ctypes.c_void_p),
        ("kv_length", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_size_t),
        ("batch", ctypes.c_int64),
        ("query_heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("q_len", ctypes.c_int64),
        ("kv_len", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("value_head_dim", ctypes.c_int64),
        ("query_strides", AttentionStrides),
        ("key_strides", AttentionStrides),
        ("value_strides", AttentionStrides),
        ("out_strides", AttentionStrides),
        ("key_log_gain_batch_stride", ctypes.c_int64),
        ("value_gain_batch_stride", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("is_causal", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    )

    def __init__(self, **values: object) -> None:
        super().__init__(struct_bytes=ctypes.sizeof(type(self)), **values)


def bind(library: ctypes.CDLL) -> ctypes.CDLL:
    """Declares the two functions of anchored_attention.h on a loaded library."""
    params = ctypes.POINTER(AnchoredAttentionParams)
    library.va_anchored_attention_workspace_bytes.argtypes = [params]
    library.va_anchored_attention_workspace_bytes.restype = ctypes.c_size_t
    library.va_anchored_attention_launch.argtypes = [params, ctypes.c_void_p]
    library.va_anchored_attention_launch.restype = ctypes.c_int
    return library
