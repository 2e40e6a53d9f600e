"""Anchored attention in eager PyTorch: the reference for the op AnchoredAttention (version 1).

    O_i = Σ_j softmax_j(scale · q_i·k_j + log γ_K[j] + visibility) · γ_V[j] v_j

arXiv 2509.25151, section 3. The logits are materialised, in float32 (float64 for float64 inputs): this is the form to
compare with, not the fast one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from va_export.errors import VaExportError

_WHERE = "anchored_attention"
# Logits held at once, in number; a few arrays of their size are alive at a time. 2²⁶ of them are 256 MB in float32.
_MOST_LOGITS = 1 << 26


def anchored_attention(
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
    """Scaled dot-product attention with a logit offset and a value gain for every key.

    Key j is visible to query i iff ``j < kv_length`` and (not causal, or ``j <= i + kv_length - Sq``): the
    causal diagonal is aligned to the bottom right, so the last query sees every valid key. Whatever lies at
    or beyond `kv_length` (NaN included) has no influence. A query that sees no key, or only keys with log
    gain -inf, gives 0.

    Args:
        query: [B, Hq, Sq, D]; Hq a multiple of Hkv: query head h reads KV head h // (Hq / Hkv).
        key: [B, Hkv, Skv, D].
        value: [B, Hkv, Skv, Dv].
        key_log_gain: [B, Skv] (or [1, Skv], [Skv]), log γ_K, natural logarithm; None means 0. -inf removes
            the key.
        value_gain: [B, Skv] (or [1, Skv], [Skv]), γ_V; None means 1.
        kv_length: number of valid keys, [B] or one integer; None means Skv.
        scale: factor on q·k; None means 1/√D.
        is_causal: whether a query sees only keys up to its own position.

    Returns:
        [B, Hq, Sq, Dv], in query's dtype; accumulated in float32 (float64 when query is float64).

    Raises:
        VaExportError: if shapes disagree.
    """
    check_attention_shapes(query, key, value, key_log_gain, value_gain)
    valid = None if kv_length is None else _valid_keys(kv_length, key)
    if valid is not None:
        # 0 · NaN is NaN: what is not a key must not reach the products, even with weight 0.
        value = value.masked_fill(~valid[:, None, :, None], 0.0)
        if value_gain is not None:
            value_gain = torch.where(valid, value_gain, 1.0)
    visible = key_visibility(query.shape[2], key.shape[2], kv_length, is_causal=is_causal, device=query.device)
    return attend_where_visible(query, key, value, key_log_gain, value_gain, visible, scale=scale)


def attend_where_visible(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_log_gain: Tensor | None,
    value_gain: Tensor | None,
    visible: Tensor | None,
    *,
    scale: float | None = None,
) -> Tensor:
    """Anchored attention under any visibility pattern; arguments as in `anchored_attention`.

    Args:
        visible: bool, broadcastable to [B, Hq or 1, Sq, Skv]; None lets every query see every key.
    """
    batch, query_heads, q_len, head_dim = query.shape
    kv_heads, kv_len, value_dim = key.shape[1], key.shape[2], value.shape[3]
    group = query_heads // kv_heads
    compiling = torch.compiler.is_compiling()  # sizes may be symbols then, which a comparison would fix
    if not compiling and kv_heads > 1 and batch * query_heads * q_len * kv_len > _MOST_LOGITS:
        # Heads do not know of each other: one KV head's at a time gives the same numbers in a fraction of the memory.
        heads = [
            attend_where_visible(
                query[:, head * group : (head + 1) * group],
                key[:, head : head + 1],
                value[:, head : head + 1],
                key_log_gain,
                value_gain,
                visible if visible is None or visible.shape[1] == 1 else visible[:, head * group : (head + 1) * group],
                scale=scale,
            )
            for head in range(kv_heads)
        ]
        return torch.cat(heads, dim=1)
    compute = torch.float64 if query.dtype == torch.float64 else torch.float32
    scale = head_dim**-0.5 if scale is None else scale

    # The heads of a group become rows of one product, so K and V are never repeated.
    rows = query.to(compute).reshape(batch, kv_heads, group * q_len, head_dim)
    logits = torch.matmul(rows, key.to(compute).transpose(2, 3)) * scale
    logits = logits.reshape(batch, query_heads, q_len, kv_len)
    if key_log_gain is not None:
        logits = logits + key_log_gain.to(compute).reshape(-1, 1, 1, kv_len)
    if visible is not None:
        logits = logits.masked_fill(~visible, float("-inf"))

    peak = logits.amax(dim=3, keepdim=True)
    peak = peak.masked_fill(peak == float("-inf"), 0.0)  # -inf - (-inf) is NaN; such a row has weights 0 instead
    weights = torch.exp(logits - peak)
    total = weights.sum(dim=3, keepdim=True)
    weights = weights / total.masked_fill(total == 0.0, 1.0)

    value = value.to(compute)
    if value_gain is not None:
        value = value * value_gain.to(compute).reshape(-1, 1, kv_len, 1)
    weights = weights.reshape(batch, kv_heads, group * q_len, kv_len)
    return torch.matmul(weights, value).reshape(batch, query_heads, q_len, value_dim).to(query.dtype)


def key_visibility(
    q_len: int, kv_len: int, kv_length: Tensor | int | None, *, is_causal: bool, device: torch.device
) -> Tensor | None:
    """Which key each query sees: bool, [B or 1, 1, Sq, Skv], or None where every query sees every key."""
    if kv_length is None and not is_causal:
        return None
    position = torch.arange(kv_len, device=device)
    valid = torch.as_tensor(kv_len if kv_length is None else kv_length, device=device).reshape(-1, 1, 1, 1)
    visible = position < valid
    if is_causal:
        last_seen = torch.arange(q_len, device=device)[:, None] + (valid - q_len)
        visible = visible & (position <= last_seen)
    return visible


def _valid_keys(kv_length: Tensor | int, key: Tensor) -> Tensor:
    """[B or 1, Skv] bool; checks the lengths' range, except while tracing, where they have no values yet."""
    batch, kv_len = key.shape[0], key.shape[2]
    length = torch.as_tensor(kv_length, device=key.device).reshape(-1)
    if length.shape[0] not in (1, batch):
        raise VaExportError(
            f"kv_length has {length.shape[0]} entries for a batch of {batch}",
            where=_WHERE,
            fix="pass one per batch row",
        )
    if not torch.compiler.is_compiling() and bool(((length < 0) | (length > kv_len)).any()):
        raise VaExportError(
            f"kv_length {length.tolist()} is outside 0..{kv_len}, the number of keys",
            where=_WHERE,
            fix="pass the number of valid keys in each batch row",
        )
    return torch.arange(kv_len, device=key.device) < length[:, None]


def check_attention_shapes(
    query: Tensor, key: Tensor, value: Tensor, key_log_gain: Tensor | None, value_gain: Tensor | None
) -> None:
    """Raise VaExportError unless the shapes are those that `anchored_attention` documents."""
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if not query.ndim == key.ndim == value.ndim == 4:
        raise VaExportError(
            f"attention needs tensors of rank 4: {shapes}", where=_WHERE, fix="pass [B, heads, length, dim]"
        )
    if query.shape[0] != key.shape[0] or key.shape[:3] != value.shape[:3] or query.shape[3] != key.shape[3]:
        raise VaExportError(
            f"attention shapes disagree: {shapes}",
            where=_WHERE,
            fix="pass query [B, Hq, Sq, D], key [B, Hkv, Skv, D] and value [B, Hkv, Skv, Dv]",
        )
    if 0 in (*query.shape, *key.shape, *value.shape):
        raise VaExportError(
            f"attention over nothing: {shapes}", where=_WHERE, fix="pass at least one query and one key"
        )
    if query.shape[1] % key.shape[1]:
        raise VaExportError(
            f"{query.shape[1]} query heads cannot share {key.shape[1]} KV heads evenly",
            where=_WHERE,
            fix="make the number of query heads a multiple of the number of KV heads",
        )
    batch, kv_len = key.shape[0], key.shape[2]
    for name, gain in (("key_log_gain", key_log_gain), ("value_gain", value_gain)):
        if gain is not None and tuple(gain.shape) not in {(batch, kv_len), (1, kv_len), (kv_len,)}:
            raise VaExportError(
                f"{name} has shape {tuple(gain.shape)}; the keys need ({batch}, {kv_len})",
                where=_WHERE,
                fix=f"pass one gain per key: [B, Skv] = [{batch}, {kv_len}]",
            )
