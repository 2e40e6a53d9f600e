"""Whom AnchoredAttention is timed against: PyTorch's attentions, without anchors (`_plain`) and with them (`_bias`).

Every peer is given what it needs in the form that suits it best, before the clock: repeated heads where it takes no
grouped ones, the dense mask, the block mask. In the clock is what a layer has to do anew, because its keys and values
are new: V · γ_V, and the columns that the value-augmented form adds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

Call = Callable[[], Tensor]
Maker = Callable[["PeerInputs"], Call]


@dataclass(frozen=True)
class PeerInputs:
    """query [B, Hq, Sq, D], key and value [B, Hkv, Skv, D], gains [B, Skv]; every key valid.

    With one query there is no mask to speak of; more queries than one are as many as keys and causal.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    key_log_gain: Tensor
    value_gain: Tensor

    @property
    def causal(self) -> bool:
        """Whether there is a triangle to leave out."""
        return self.query.shape[2] > 1

    def repeated(self) -> tuple[Tensor, Tensor]:
        """Key and value with a head for each of query's."""
        group = self.query.shape[1] // self.key.shape[1]
        return self.key.repeat_interleave(group, 1), self.value.repeat_interleave(group, 1)

    def columns(self, gain: Tensor, like: Tensor) -> Tensor:
        """A gain as [B, 1, Skv, 1]."""
        return gain.to(like.dtype)[:, None, :, None]


def prefill_peers() -> dict[str, Maker]:
    """By name; calling one may raise RuntimeError where PyTorch has no kernel for the inputs."""
    return {
        "sdpa_flash_plain": partial(_sdpa_plain, SDPBackend.FLASH_ATTENTION),
        "sdpa_cudnn_plain": partial(_sdpa_plain, SDPBackend.CUDNN_ATTENTION),
        "sdpa_efficient_bias": partial(_sdpa_dense_bias, SDPBackend.EFFICIENT_ATTENTION),
        "sdpa_cudnn_bias": partial(_sdpa_dense_bias, SDPBackend.CUDNN_ATTENTION),
        "sdpa_flash_augmented_bias": partial(_sdpa_augmented, SDPBackend.FLASH_ATTENTION),
        "sdpa_cudnn_augmented_bias": partial(_sdpa_augmented, SDPBackend.CUDNN_ATTENTION),
        "flex_attention_bias": _flex_bias,
    }


def decode_peers() -> dict[str, Maker]:
    """A decode step has no anchors, so these compute what ours does; `_plain` is what they are all the same."""
    return {
        "sdpa_flash_plain": partial(_sdpa_plain, SDPBackend.FLASH_ATTENTION),
        "sdpa_cudnn_plain": partial(_sdpa_plain, SDPBackend.CUDNN_ATTENTION),
        "sdpa_efficient_plain": partial(_sdpa_plain, SDPBackend.EFFICIENT_ATTENTION),
        "flex_attention_plain": _flex_plain,
    }


def _sdpa_plain(backend: SDPBackend, inputs: PeerInputs) -> Call:
    def run(key: Tensor, value: Tensor, **options: Any) -> Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(inputs.query, key, value, is_causal=inputs.causal, **options)

    return _grouped_or_repeated(run, inputs)


def _grouped_or_repeated(run: Callable[..., Tensor], inputs: PeerInputs) -> Call:
    """Grouped heads where the backend takes them, since repeating reads more memory."""
    try:
        grouped = partial(run, inputs.key, inputs.value, enable_gqa=True)
        grouped()
        return grouped
    except RuntimeError:
        key, value = inputs.repeated()
        return partial(run, key, value)


def _sdpa_dense_bias(backend: SDPBackend, inputs: PeerInputs) -> Call:
    query, (key, value) = inputs.query, inputs.repeated()
    q_len, kv_len = query.shape[2], key.shape[2]
    hidden = torch.ones(q_len, kv_len, dtype=torch.bool, device=query.device).triu(kv_len - q_len + 1)
    bias = inputs.key_log_gain.to(query.dtype)[:, None, None, :].expand(-1, 1, q_len, kv_len)
    mask = bias.masked_fill(hidden, float("-inf")).expand(-1, query.shape[1], -1, -1)
    value_gain = inputs.columns(inputs.value_gain, value)

    def run() -> Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(query, key, value * value_gain, attn_mask=mask)

    return run


def _sdpa_augmented(backend: SDPBackend, inputs: PeerInputs) -> Call:
    """Y = Attention(Q, K, [γ_K γ_V V | γ_K]), O = Y[…, :D] / Y[…, D:]: exact, without mask and logarithm. Eight
    columns more, which is what kernels ask of a head; Q and K get zeros to match."""
    query, head_dim = inputs.query, inputs.query.shape[3]
    key_gain = inputs.columns(inputs.key_log_gain.exp(), inputs.value)
    both_gains = inputs.columns(inputs.key_log_gain.exp() * inputs.value_gain, inputs.value)

    def run(key: Tensor, value: Tensor, **options: Any) -> Tensor:
        columns = key_gain.expand(*value.shape[:3], 1)
        augmented = torch.cat([value * both_gains, pad(columns, (0, 7))], dim=3)
        options |= {"is_causal": inputs.causal, "scale": head_dim**-0.5}
        with sdpa_kernel(backend):
            wide = scaled_dot_product_attention(pad(query, (0, 8)), pad(key, (0, 8)), augmented, **options)
        return wide[..., :head_dim] / wide[..., head_dim : head_dim + 1]

    return _grouped_or_repeated(run, inputs)


@cache
def _flex_attention(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    if device == "cpu":
        return flex_attention
    import torch._dynamo

    torch._dynamo.config.recompile_limit = 64  # one compilation a shape; beyond the limit it would run uncompiled
    return torch.compile(flex_attention, dynamic=False)


@cache
def _causal_blocks(length: int, device: str) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(lambda b, h, q, k: q >= k, None, None, length, length, device=device)


def _flex_bias(inputs: PeerInputs) -> Call:
    query, key, value, key_log_gain = inputs.query, inputs.key, inputs.value, inputs.key_log_gain
    attention = _flex_attention(query.device.type)
    blocks = _causal_blocks(query.shape[2], query.device.type)
    value_gain = inputs.columns(inputs.value_gain, value)

    def anchored(score: Tensor, batch: Tensor, head: Tensor, q_index: Tensor, kv_index: Tensor) -> Tensor:
        return score + key_log_gain[batch, kv_index]

    return lambda: attention(query, key, value * value_gain, score_mod=anchored, block_mask=blocks, enable_gqa=True)


def _flex_plain(inputs: PeerInputs) -> Call:
    attention = _flex_attention(inputs.query.device.type)
    return lambda: attention(inputs.query, inputs.key, inputs.value, enable_gqa=True)
