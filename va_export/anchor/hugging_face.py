"""Anchored attention for any Hugging Face decoder: the attention implementations "anchored" and "anchored_cuda".

Nothing of a model is copied or patched. `register` puts an attention function and a mask function for each into
transformers' `AttentionInterface` and `AttentionMaskInterface`; `use_anchored_attention(model)` selects one for the
text decoder alone, so a vision tower keeps its own attention. "anchored" is the eager reference, for any device and
any mask; "anchored_cuda" (`hugging_face_cuda.py`) is the library's CUDA kernel. The gains arrive in one of two ways:

- ``model(..., key_log_gain=..., value_gain=...)``: transformers hands unknown keywords down to the attention;
- ``with anchors(model, key_log_gain, value_gain): model.generate(...)``.

Gains act in prefill only (more than one query); a step with one query is plain attention over the cache.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import causal_mask_function, sdpa_mask

from va_export.anchor.attention import attend_where_visible, key_visibility
from va_export.anchor.hugging_face_cache import cache_of_call
from va_export.anchor.hugging_face_call import (
    gains_of_call,
    is_known_as,
    refuse_moved_cache,
    refuse_unsupported,
    uncomputed,
)
from va_export.anchor.hugging_face_cuda import (
    CUDA_ATTENTION_NAME,
    anchored_cuda_forward,
    anchored_cuda_mask,
    prove_kernels,
)
from va_export.errors import VaExportError
from va_export.native import plugin_library

ATTENTION_NAME = "anchored"
NAMES = (ATTENTION_NAME, CUDA_ATTENTION_NAME)


def register() -> None:
    """Make both names known to transformers. Idempotent; importing this module does it."""
    AttentionInterface.register(ATTENTION_NAME, anchored_attention_forward)
    AttentionMaskInterface.register(ATTENTION_NAME, anchored_mask)
    AttentionInterface.register(CUDA_ATTENTION_NAME, anchored_cuda_forward)
    AttentionMaskInterface.register(CUDA_ATTENTION_NAME, anchored_cuda_mask)


def use_anchored_attention(model: PreTrainedModel, implementation: str = ATTENTION_NAME) -> PreTrainedModel:
    """Select anchored attention in the model's text decoder only, in place; returns the model.

    Args:
        implementation: "anchored", or "anchored_cuda" for a model in float16, bfloat16 or float32 on an NVIDIA GPU.
            The first time, the kernels are tested there (`va_export.native.selftest`): move the model first.

    Raises:
        VaExportError: another name, no plugin library for "anchored_cuda", or a model class with attention of its own.
    """
    if implementation not in NAMES:
        raise VaExportError(
            f"there is no anchored attention named {implementation!r}",
            where="use_anchored_attention",
            fix=f"choose one of {', '.join(NAMES)}",
        )
    if implementation == CUDA_ATTENTION_NAME:
        plugin_library()  # says what to do where it is missing
    decoder = _text_decoder(model)
    if implementation == CUDA_ATTENTION_NAME:
        prove_kernels(decoder)
    decoder.set_attn_implementation(implementation)
    if decoder.config._attn_implementation != implementation:
        raise VaExportError(
            f"{type(decoder).__name__} does not take its attention from transformers' AttentionInterface",
            where=type(model).__name__,
            fix="use a model class whose attention goes through AttentionInterface",
        )
    return model


def _text_decoder(model: PreTrainedModel) -> PreTrainedModel:
    decoder: PreTrainedModel = model.get_decoder()  # type: ignore[no-untyped-call]
    return decoder


@contextmanager
def anchors(
    model: PreTrainedModel, key_log_gain: Tensor | NDArray[Any], value_gain: Tensor | NDArray[Any]
) -> Iterator[PreTrainedModel]:
    """Within the block, anchor every prefill of `model`: a whole prompt or its chunks, in `generate` or not.

    Args:
        model: has anchored attention selected (`use_anchored_attention`).
        key_log_gain: [S] or [B, S], log γ_K at every position of the prompt, 0 where there is no gain.
            Padding counts as a position. With [B, S], a batch that `generate` expanded (beams) repeats each
            row in place.
        value_gain: [S] or [B, S], γ_V at every position of the prompt, 1 where there is no gain.

    Raises:
        VaExportError: if the model is not anchored, the gains' shapes disagree, or a step of several queries
            goes past S.
    """
    decoder = _text_decoder(model)
    if decoder.config._attn_implementation not in NAMES:
        raise VaExportError(
            f"the decoder's attention is {decoder.config._attn_implementation!r}, which ignores gains",
            where=type(model).__name__,
            fix="call use_anchored_attention(model) first",
        )
    key_log_gain, value_gain = torch.as_tensor(key_log_gain), torch.as_tensor(value_gain)
    if key_log_gain.shape != value_gain.shape or key_log_gain.ndim not in (1, 2):
        raise VaExportError(
            f"key_log_gain {tuple(key_log_gain.shape)} and value_gain {tuple(value_gain.shape)} are no pair",
            where="anchors",
            fix="pass both as [S] or [B, S], one gain per position of the prompt",
        )
    length = key_log_gain.shape[-1]
    gains = (key_log_gain.reshape(-1, length), value_gain.reshape(-1, length))
    signature = inspect.signature(decoder.forward)

    def add_gains(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        # By name; a keyword that the signature does not name is kept under its own.
        arguments = {**signature.bind_partial(*args, **kwargs).arguments, **kwargs}
        step = _gains_for_step(arguments, *gains)
        if step is None:
            return args, kwargs
        return args, {**kwargs, "key_log_gain": step[0], "value_gain": step[1]}

    handle = decoder.register_forward_pre_hook(add_gains, with_kwargs=True)
    try:
        yield model
    finally:
        handle.remove()


def _gains_for_step(
    arguments: dict[str, Any], key_log_gain: Tensor, value_gain: Tensor
) -> tuple[Tensor, Tensor] | None:
    """The gains [B, capacity] of one forward call of the decoder, or None for a decode step."""
    tokens = arguments.get("input_ids")
    tokens = arguments["inputs_embeds"] if tokens is None else tokens
    batch, q_len = tokens.shape[:2]
    cache = cache_of_call(arguments)
    seen = 0 if cache is None else int(cache.get_seq_length())
    length = key_log_gain.shape[1]
    if seen + q_len > length and q_len == 1:
        return None
    if seen + q_len > length or q_len == 1:
        # The rule "one query is plain" would drop the anchors from a prompt's last token; a longer step
        # (speculative decoding, another turn) would have positions whose gains nobody gave. Both would be
        # wrong without a word.
        raise VaExportError(
            f"prefilling positions {seen}..{seen + q_len - 1} does not fit gains for {length} positions",
            where="anchors",
            fix="give gains for all of the prompt, and prefill at least two positions a step",
        )
    capacity = length if cache is None else max(length, cache.get_mask_sizes(q_len, 0)[0])
    if batch % key_log_gain.shape[0]:
        raise VaExportError(
            f"gains for {key_log_gain.shape[0]} rows do not fit a batch of {batch}",
            where="anchors",
            fix="pass one row of gains, or one per batch row",
        )

    def fit(gain: Tensor, neutral: float) -> Tensor:
        gain = gain.to(tokens.device).repeat_interleave(batch // gain.shape[0], dim=0)
        return torch.nn.functional.pad(gain, (0, capacity - length), value=neutral)

    return fit(key_log_gain, 0.0), fit(value_gain, 1.0)


def anchored_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int | Tensor = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """The mask function that goes with `anchored_attention_forward`; arguments as transformers passes them.

    Returns:
        None where the pattern is causal and aligned to the bottom right; [B, Skv] bool where keys are padded
        besides; a dense [B, 1, Sq, Skv] bool only for what needs one: sliding windows, packed sequences,
        static caches.
    """
    if q_length > 1:
        refuse_moved_cache(kv_offset, ATTENTION_NAME)
    plain = (
        mask_function is causal_mask_function
        and is_known_as(kv_offset, 0)
        and is_known_as(q_offset, kv_length - q_length)
    )
    if not plain or (attention_mask is not None and attention_mask.shape[-1] != kv_length):
        kwargs = {**kwargs, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        dense: Tensor = sdpa_mask(
            batch_size,
            q_length,
            kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            **kwargs,
        )
        return dense
    if attention_mask is None or (not torch.compiler.is_compiling() and bool(attention_mask.all())):
        return None
    return attention_mask.to(torch.bool)


def anchored_attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    key_log_gain: Tensor | None = None,
    value_gain: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature over `anchored_attention`.

    Args:
        query, key, value: [B, Hq, Sq, D], [B, Hkv, Skv, D], [B, Hkv, Skv, Dv], keys from the cache included.
        attention_mask: what `anchored_mask` returned, or a caller's own bool [B, 1, Sq, Skv].
        key_log_gain, value_gain: [B or 1, at least Skv]: later positions than Skv (chunked prefill) are
            ignored.

    Returns:
        ([B, Sq, Hq, Dv], None): attention weights are not returned.
    """
    refuse_unsupported(module, dropout, kwargs)
    if attention_mask is not None and attention_mask.dtype != torch.bool:
        raise uncomputed(module, [f"a {attention_mask.dtype} mask"])
    is_causal, key_log_gain, value_gain = gains_of_call(
        module, query, key, value, is_causal, key_log_gain, value_gain, where=ATTENTION_NAME
    )
    q_len, kv_len = query.shape[2], key.shape[2]
    if attention_mask is not None and attention_mask.ndim == 4:
        visible: Tensor | None = attention_mask[..., :kv_len]
    else:
        visible = key_visibility(q_len, kv_len, None, is_causal=is_causal, device=query.device)
        if attention_mask is not None:
            # A padded key is one with gain 0, and log 0 removes it exactly: no dense mask for padding.
            offset = torch.zeros_like(attention_mask, dtype=torch.float32) if key_log_gain is None else key_log_gain
            key_log_gain = offset.masked_fill(~attention_mask, float("-inf"))
    output = attend_where_visible(query, key, value, key_log_gain, value_gain, visible, scale=scaling)
    return output.transpose(1, 2).contiguous(), None


register()
