"""AnchoredAttention on CUDA tensors: the kernel that the TensorRT plugin runs, called from PyTorch.

Forward only. `va_export.anchor.attention.anchored_attention` is the same function in eager PyTorch, for any device. The
launch is the operator `va_export::anchored_attention_cuda`, whose shapes PyTorch knows without running it: it can be
compiled by `torch.compile` and captured in CUDA graphs. Importing this module loads and builds nothing.
"""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from va_export.errors import VaExportError
from va_export.native import launch_failure, load_library, plugin_library
from va_export.native.anchored_attention_params import (
    DTYPE_CODES,
    MAX_GRID,
    MAX_HEAD_DIM,
    AnchoredAttentionParams,
    AttentionStrides,
    bind,
)

_WHERE = "anchored_attention_cuda"
_EAGER = "va_export.anchor.attention.anchored_attention"


def anchored_attention_cuda(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_log_gain: Tensor | None = None,
    value_gain: Tensor | None = None,
    kv_length: Tensor | int | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = True,
) -> Tensor:
    """Anchored attention on the current CUDA stream; queues one or two kernels and does not synchronise.

    Key j is visible to query i iff ``j < kv_length`` and (not causal, or ``j <= i + kv_length - Sq``). Any strides
    whose last axis is contiguous are taken as they are, so [B, S, H, D] transposed to [B, H, S, D] is not copied.
    Workspace comes from PyTorch's caching allocator.

    Args:
        query: [B, Hq, Sq, D], float16, bfloat16 or float32; D at most 256, Hq a multiple of Hkv.
        key: [B, Hkv, Skv, D], of query's dtype.
        value: [B, Hkv, Skv, Dv], of query's dtype; Dv at most 256.
        key_log_gain: [B, Skv] float32, log γ_K, natural logarithm; -inf removes the key. None means 0.
        value_gain: [B, Skv] float32, γ_V. None means 1.
        kv_length: number of valid keys, [B] int64 on the device, or one integer; None means Skv.
        scale: factor on q·k, above 0; None means 1/√D.
        is_causal: whether a query sees only keys up to its own position.

    Returns:
        [B, Hq, Sq, Dv] in query's dtype, accumulated in float32; in memory [B, Sq, Hq, Dv], as the projection that
        usually follows wants it. A query that sees no key gives 0.

    Raises:
        VaExportError: device, dtype or shape outside what is said above, no plugin library, or a failed launch.
    """
    _check_devices(query, key, value)
    _check_tensors(query, key, value)
    batch, kv_len = key.shape[0], key.shape[2]
    scale = 1.0 / math.sqrt(query.shape[3]) if scale is None else float(scale)
    if not (math.isfinite(scale) and scale > 0):
        raise VaExportError(f"scale is {scale}", where=_WHERE, fix="Pass a finite scale above 0.")
    gain_shape = (batch, kv_len)
    key_log_gain = _vector("key_log_gain", key_log_gain, gain_shape, torch.float32, query.device)
    value_gain = _vector("value_gain", value_gain, gain_shape, torch.float32, query.device)
    if isinstance(kv_length, int):
        kv_length = torch.full((batch,), kv_length, dtype=torch.int64, device=query.device)
    kv_length = _vector("kv_length", kv_length, (batch,), torch.int64, query.device)
    out: Tensor = _attend(query, key, value, key_log_gain, value_gain, kv_length, scale, is_causal)
    return out


_SCHEMA = (
    "(Tensor query, Tensor key, Tensor value, Tensor? key_log_gain, Tensor? value_gain, Tensor? kv_length,"
    " float scale, bool is_causal) -> Tensor"
)


@torch.library.custom_op("va_export::anchored_attention_cuda", mutates_args=(), schema=_SCHEMA)
def _attend(  # type: ignore[no-untyped-def]
    query, key, value, key_log_gain, value_gain, kv_length, scale, is_causal
):
    """The launch; its arguments are what `anchored_attention_cuda` has checked."""
    batch, query_heads, q_len, head_dim = query.shape
    kv_heads, kv_len, value_head_dim = key.shape[1], key.shape[2], value.shape[3]
    if key_log_gain is None:
        key_log_gain = _neutral(0.0, kv_len, query.device).expand(batch, kv_len)
    if value_gain is None:
        value_gain = _neutral(1.0, kv_len, query.device).expand(batch, kv_len)
    out = _empty_output(query, value)
    params = AnchoredAttentionParams(
        query=query.data_ptr(),
        key=key.data_ptr(),
        value=value.data_ptr(),
        key_log_gain=key_log_gain.data_ptr(),
        value_gain=value_gain.data_ptr(),
        kv_length=None if kv_length is None else kv_length.data_ptr(),
        out=out.data_ptr(),
        batch=batch,
        query_heads=query_heads,
        kv_heads=kv_heads,
        q_len=q_len,
        kv_len=kv_len,
        head_dim=head_dim,
        value_head_dim=value_head_dim,
        query_strides=AttentionStrides(*query.stride()[:3]),
        key_strides=AttentionStrides(*key.stride()[:3]),
        value_strides=AttentionStrides(*value.stride()[:3]),
        out_strides=AttentionStrides(*out.stride()[:3]),
        key_log_gain_batch_stride=key_log_gain.stride(0),
        value_gain_batch_stride=value_gain.stride(0),
        scale=scale,
        is_causal=int(is_causal),
        dtype=DTYPE_CODES[_name(query.dtype)],
    )
    _launch(params, query.device)
    return out


@_attend.register_fake
def _(query, key, value, key_log_gain, value_gain, kv_length, scale, is_causal):  # type: ignore[no-untyped-def]
    return _empty_output(query, value)


def _empty_output(query: Tensor, value: Tensor) -> Tensor:
    batch, query_heads, q_len, _ = query.shape
    return query.new_empty((batch, q_len, query_heads, value.shape[3])).transpose(1, 2)


_NEUTRAL: dict[tuple[float, int, torch.device], Tensor] = {}


def _neutral(gain: float, kv_len: int, device: torch.device) -> Tensor:
    """At least kv_len gains of no effect, which every launch without gains shares.

    They are made for powers of two and never freed, for CUDA graphs keep their addresses. The first of a length is
    waited for, once, since other streams may use it; a graph that is captured before there is one gets its own.
    """
    key = (gain, 1 << (kv_len - 1).bit_length(), device)
    if key not in _NEUTRAL:
        made = torch.full((key[1],), gain, dtype=torch.float32, device=device)
        if device.type == "cuda":
            if torch.cuda.is_current_stream_capturing():
                return made[:kv_len]
            torch.cuda.current_stream(device).synchronize()
        _NEUTRAL[key] = made
    return _NEUTRAL[key][:kv_len]


def _launch(params: AnchoredAttentionParams, device: torch.device) -> None:
    path = plugin_library()
    library = bind(load_library(path))
    with torch.cuda.device(device):
        workspace_bytes = library.va_anchored_attention_workspace_bytes(ctypes.byref(params))
        if workspace_bytes:
            workspace = torch.empty(workspace_bytes, dtype=torch.uint8, device=device)
            params.workspace, params.workspace_bytes = workspace.data_ptr(), workspace_bytes
        stream = torch.cuda.current_stream(device).cuda_stream
        error = library.va_anchored_attention_launch(ctypes.byref(params), stream)
    if error:
        raise launch_failure(library, path, error)


def _check_devices(query: Tensor, key: Tensor, value: Tensor) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.device.type != "cuda" or tensor.device != query.device:
            raise VaExportError(
                f"{name} is on {tensor.device}, and this function runs a CUDA kernel on one GPU",
                where=_WHERE,
                fix=f"Move all tensors to one GPU, or use {_EAGER}.",
            )


def _check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.requires_grad and torch.is_grad_enabled():
            raise VaExportError(
                f"{name} requires a gradient, and the kernel has no backward pass",
                where=_WHERE,
                fix=f"Call it under torch.no_grad(), or use {_EAGER}.",
            )
        if tensor.dtype != query.dtype or _name(tensor.dtype) not in DTYPE_CODES:
            raise VaExportError(
                f"{name} is {_name(tensor.dtype)} and query {_name(query.dtype)}",
                where=_WHERE,
                fix=f"Give query, key and value one dtype of {', '.join(DTYPE_CODES)}.",
            )
        fits = tensor.ndim == 4 and 0 not in tensor.shape and tensor.shape[3] <= MAX_HEAD_DIM
        if not fits or (tensor.stride(3) != 1 and tensor.shape[3] > 1):
            raise VaExportError(
                f"{name} has shape {tuple(tensor.shape)} and strides {tensor.stride()}",
                where=_WHERE,
                fix=f"Give [batch, heads, length, head_dim], none 0, head_dim contiguous and at most {MAX_HEAD_DIM}.",
            )
    batch, query_heads, _, head_dim = query.shape
    kv_heads = key.shape[1]
    fits = key.shape == (batch, kv_heads, key.shape[2], head_dim) and value.shape[:3] == key.shape[:3]
    if not fits or query_heads % kv_heads or max(batch, kv_heads) > MAX_GRID:
        raise VaExportError(
            f"shapes do not fit: query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}",
            where=_WHERE,
            fix="Give [B, Hq, Sq, D], [B, Hkv, Skv, D] and [B, Hkv, Skv, Dv], Hq a multiple of Hkv, "
            f"B and Hkv at most {MAX_GRID}.",
        )


def _vector(
    name: str, given: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """`given` after checking it, with a contiguous last axis."""
    if given is None:
        return None
    if given.shape != shape or given.dtype != dtype or given.device != device:
        raise VaExportError(
            f"{name} has shape {tuple(given.shape)}, {_name(given.dtype)}, on {given.device}",
            where=_WHERE,
            fix=f"Give shape {shape}, {_name(dtype)}, on {device}.",
        )
    return given if given.stride(-1) == 1 else given.contiguous()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
