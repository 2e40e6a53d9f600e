"""The ways in which a Hugging Face decoder can compute anchored attention, as attention implementations to compare.

Each form is registered with transformers under its own name and takes the gains as `key_log_gain` and `value_gain`,
as va_export's own implementations do. All of them give the same output up to rounding, except for the plain forms,
which know no gains and are the ceiling. The peers are written as somebody would who has only PyTorch at hand:

- `official_eager_bias`: the paper's own way (arXiv 2509.25151, feufhd/VideoAnchor): an S × S matrix of log gains and
  causal mask in every layer, a softmax over materialised logits in float32;
- `sdpa_dense_bias`: scaled_dot_product_attention with one S × S mask for all layers, which holds the log gains;
- `flex_attention_bias`: FlexAttention with a score_mod that adds the log gains, and a causal block mask.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface

_PREFIX = "va_export_evidence_"

# Over [B, Hq, Sq, D], [B, Hkv, Skv, D] and [B, Hkv, Skv, Dv], with gains [B, Skv] or None → [B, Hq, Sq, Dv].
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, float], Tensor]


@dataclass(frozen=True)
class AttentionForm:
    """One way.

    Attributes:
        name: in evidence files; ends in `_plain` (no gains) or `_bias`.
        implementation: transformers' name of it.
        anchored: whether it takes gains.
        context: what must surround a forward call.
    """

    name: str
    implementation: str
    anchored: bool
    context: Callable[[], AbstractContextManager[Any]] = nullcontext


def peer_forms(device: torch.device) -> list[AttentionForm]:
    """The peers, registered with transformers; the first are plain."""
    for name, attend in (
        ("sdpa_plain", _sdpa_plain),
        ("official_eager_bias", _official_eager),
        ("sdpa_dense_bias", _DenseBias()),
        ("flex_attention_bias", _Flex(compiled=device.type == "cuda")),
    ):
        _register(name, attend)
    anchored = [
        AttentionForm(name, _PREFIX + name, anchored=True)
        for name in ("official_eager_bias", "sdpa_dense_bias", "flex_attention_bias")
    ]
    if device.type != "cuda":
        return [AttentionForm("sdpa_plain", _PREFIX + "sdpa_plain", anchored=False), *anchored]
    # Which of its kernels PyTorch would choose differs between versions, so both are named; the rest is for shapes
    # that a kernel refuses.
    plain = [
        AttentionForm(
            f"sdpa_{name}_plain",
            _PREFIX + "sdpa_plain",
            anchored=False,
            context=functools.partial(
                sdpa_kernel,
                [first, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
                set_priority=True,
            ),
        )
        for name, first in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION))
    ]
    return [*plain, *anchored]


def _register(name: str, attend: Attend) -> None:
    def forward(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        key_log_gain: Tensor | None = None,
        value_gain: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        assert attention_mask is None  # one unpadded prompt: every form makes its own causal pattern
        if query.shape[2] == 1:  # the paper anchors prefill only
            key_log_gain = value_gain = None
        scale = query.shape[3] ** -0.5 if scaling is None else scaling
        output = attend(query, key, value, key_log_gain, value_gain, scale)
        return output.transpose(1, 2).contiguous(), None

    AttentionInterface.register(_PREFIX + name, forward)
    AttentionMaskInterface.register(_PREFIX + name, _no_mask)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


def _sdpa_plain(query: Tensor, key: Tensor, value: Tensor, _log: Any, _gain: Any, scale: float) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=query.shape[2] > 1, scale=scale, enable_gqa=True
    )


def _scaled(value: Tensor, value_gain: Tensor | None) -> Tensor:
    return value if value_gain is None else value * value_gain[:, None, :, None].to(value.dtype)


def causal_bias(key_log_gain: Tensor | None, q_len: int, kv_len: int, dtype: torch.dtype, device: Any) -> Tensor:
    """The dense [B or 1, 1, Sq, Skv] sum of log gains and causal mask, its rows aligned to 16 bytes as kernels want."""
    room = -(-kv_len // 16) * 16
    rows = 1 if key_log_gain is None else key_log_gain.shape[0]
    bias = torch.zeros(rows, 1, q_len, room, dtype=dtype, device=device)[..., :kv_len]
    if key_log_gain is not None:
        bias += key_log_gain[:, None, None, :].to(dtype)
    future = torch.ones(q_len, kv_len, dtype=torch.bool, device=device).triu(kv_len - q_len + 1)
    return bias.masked_fill_(future, float("-inf"))


def _official_eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_log_gain: Tensor | None,
    value_gain: Tensor | None,
    scale: float,
) -> Tensor:
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), _scaled(value, value_gain).repeat_interleave(group, 1)
    logits = torch.matmul(query, key.transpose(2, 3)) * scale
    logits = logits + causal_bias(key_log_gain, query.shape[2], key.shape[2], query.dtype, query.device)
    weights = torch.softmax(logits, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, value)


class _DenseBias:
    """SDPA with the bias of all layers made once, when the first layer meets new gains."""

    def __init__(self) -> None:
        self._gains: Tensor | None = None
        self._bias: Tensor | None = None

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_log_gain: Tensor | None,
        value_gain: Tensor | None,
        scale: float,
    ) -> Tensor:
        if key_log_gain is None:
            self._gains = self._bias = None  # a decode step: the prompt is done with, and its S × S mask
            return _sdpa_plain(query, key, value, None, None, scale)
        if self._gains is not key_log_gain:
            self._bias = None  # the old one's memory first
            self._bias = causal_bias(key_log_gain, query.shape[2], key.shape[2], query.dtype, query.device)
            self._gains = key_log_gain
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, _scaled(value, value_gain), attn_mask=self._bias, scale=scale, enable_gqa=True
        )


class _Flex:
    """FlexAttention; compiled on a GPU, where it is a fused kernel, and materialised on a CPU."""

    def __init__(self, compiled: bool) -> None:
        self._attend: Any = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention
        self._block_mask: Any = None
        self._size = (0, 0)

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_log_gain: Tensor | None,
        value_gain: Tensor | None,
        scale: float,
    ) -> Tensor:
        if key_log_gain is None:
            return _sdpa_plain(query, key, value, None, None, scale)
        size = query.shape[2], key.shape[2]
        if self._size != size:
            offset = size[1] - size[0]
            self._block_mask = create_block_mask(
                lambda b, h, q, k: q + offset >= k, None, None, *size, device=query.device
            )
            self._size = size
        gains = key_log_gain.float()

        def add_log_gain(score: Tensor, batch: Tensor, _head: Tensor, _query: Tensor, position: Tensor) -> Tensor:
            return score + gains[batch, position]

        attended: Tensor = self._attend(
            query,
            key,
            _scaled(value, value_gain),
            score_mod=add_log_gain,
            block_mask=self._block_mask,
            scale=scale,
            enable_gqa=True,
        )
        return attended
