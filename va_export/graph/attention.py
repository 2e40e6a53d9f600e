"""The attention that the decoder is traced with: Hugging Face's attention interface → the custom op."""

from __future__ import annotations

import torch
from transformers import AttentionInterface

from va_export.ops import anchored_attention

IMPLEMENTATION = "anchored_export"


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    key_log_gain: torch.Tensor,
    value_gain: torch.Tensor,
    kv_length: torch.Tensor,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """(B, Hq, Sq, D), (B, Hkv, C, D) → (B, Sq, Hq, D), as Hugging Face's layers want it."""
    op = anchored_attention.torch_op()
    output: torch.Tensor = op(query, key, value, key_log_gain, value_gain, kv_length, scaling, True)  # type: ignore[assignment]
    return output.transpose(1, 2), None


def register() -> str:
    """Make the implementation known to transformers; returns the name to give as `_attn_implementation`."""
    AttentionInterface.register(IMPLEMENTATION, _attention)
    return IMPLEMENTATION
