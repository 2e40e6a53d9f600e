"""What every implementation of anchored attention decides of a call by transformers, before any arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from va_export.anchor.attention import check_attention_shapes
from va_export.errors import VaExportError


def gains_of_call(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_causal: bool | None,
    key_log_gain: Tensor | None,
    value_gain: Tensor | None,
    *,
    where: str,
) -> tuple[bool, Tensor | None, Tensor | None]:
    """What every implementation must decide of a call, after checking its shapes.

    Returns:
        whether it is causal, and the gains [B or 1, Skv] that act in it: none with one query or without causality.
    """
    is_causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    q_len, kv_len = query.shape[2], key.shape[2]
    if not is_causal or q_len == 1:
        key_log_gain = value_gain = None
    key_log_gain = _cover_keys(key_log_gain, kv_len, "key_log_gain", where)
    value_gain = _cover_keys(value_gain, kv_len, "value_gain", where)
    check_attention_shapes(query, key, value, key_log_gain, value_gain)
    return is_causal, key_log_gain, value_gain


def _cover_keys(gain: Tensor | None, kv_len: int, name: str, where: str) -> Tensor | None:
    if gain is None:
        return None
    if gain.ndim == 1:
        gain = gain[None]
    if gain.shape[1] < kv_len:
        raise VaExportError(
            f"{name} covers {gain.shape[1]} positions, the attention sees {kv_len} keys",
            where=where,
            fix="give gains for every position from the prompt's first, those already in the cache included",
        )
    return gain[:, :kv_len]


def refuse_unsupported(module: torch.nn.Module, dropout: float, options: dict[str, Any]) -> None:
    """What would change the result and is not computed here must not pass in silence."""
    wanted = [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]
    wanted += ["dropout"] if dropout else []
    wanted += ["output_attentions"] if options.get("output_attentions") else []
    if wanted:
        raise uncomputed(module, wanted)


def uncomputed(module: torch.nn.Module, wanted: list[str]) -> VaExportError:
    """The error that names what a model or a caller wants and an anchored attention has not."""
    return VaExportError(
        f"anchored attention does not compute {', '.join(wanted)}",
        where=type(module).__name__,
        fix="choose a model without it, call model.eval(), or pass a bool mask",
    )


def refuse_moved_cache(kv_offset: int | Tensor, where: str) -> None:
    """Raise VaExportError where the first key is not the prompt's first position, which gains are counted from."""
    if not is_known_as(kv_offset, 0):
        raise VaExportError(
            f"the cache no longer starts at the prompt's first position (offset {kv_offset})",
            where=where,
            fix="prefill in one step, or use a cache without a sliding window",
        )


def is_known_as(offset: int | Tensor, expected: int) -> bool:
    """Whether an offset is known to have a value; reading a static cache's tensor synchronises."""
    return not isinstance(offset, Tensor) and offset == expected
