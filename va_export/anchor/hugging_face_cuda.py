"""The attention implementation "anchored_cuda": the library's CUDA kernel in Hugging Face models.

The kernel takes no mask. What transformers would say with one is said by a `ValidKeys`: how many keys of a static cache
are filled, and which of them are padding. It is made once a forward call and copied nowhere; nothing here waits for the
GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import causal_mask_function

from va_export.anchor.hugging_face_call import (
    gains_of_call,
    is_known_as,
    refuse_moved_cache,
    refuse_unsupported,
    uncomputed,
)
from va_export.errors import VaExportError
from va_export.native import plugin_library
from va_export.native.anchored_attention_params import DTYPE_CODES
from va_export.native.kernels import DECODE, PREFILL

CUDA_ATTENTION_NAME = "anchored_cuda"
_TESTED_CAPACITY, _TESTED_LENGTH = 4096, 2048  # a cache has no end here, and a prompt any length


class ValidKeys(NamedTuple):
    """Which keys there are, as the kernel wants to hear it.

    Attributes:
        kv_length: [B] int64, filled positions of a static cache; None where every key of the call is one.
        padding_log_gain: [B, Skv] float32, -inf at padded keys and 0 at others; None where nobody spoke of padding.
    """

    kv_length: Tensor | None
    padding_log_gain: Tensor | None

    @property
    def ndim(self) -> int:
        """As of a finished mask, which transformers hands on as it is."""
        return 4

    def contiguous(self) -> ValidKeys:
        """As of a tensor: `generate` of transformers 5.18 to 5.23 asks for it of whatever mask it has made."""
        return self


def prove_kernels(decoder: PreTrainedModel) -> None:
    """Test the kernels on the decoder's GPUs, or the current one, and take those that are right and fast.

    Raises:
        VaExportError: as `take_proven_kernels`.
    """
    if not torch.cuda.is_available():
        return
    from va_export.native.selftest.documents import AttentionShape
    from va_export.native.selftest.prove import take_proven_kernels

    config: Any = decoder.config
    dtype, heads = next(decoder.parameters()).dtype, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    shape = AttentionShape(
        dtype=str(dtype).removeprefix("torch."),
        query_heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=head_dim,
        value_head_dim=getattr(config, "v_head_dim", None) or head_dim,
        capacity=_TESTED_CAPACITY,
        tuned_length=_TESTED_LENGTH,
    )
    places = {parameter.device.index for parameter in decoder.parameters() if parameter.device.type == "cuda"}
    for device in sorted(places or {torch.cuda.current_device()}):
        if shape.dtype in DTYPE_CODES:  # others are refused when they are run
            take_proven_kernels(plugin_library(), device, shape, (DECODE, PREFILL))


def anchored_cuda_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int | Tensor = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | ValidKeys | None = None,
    **kwargs: Any,
) -> ValidKeys | None:
    """The mask function that goes with `anchored_cuda_forward`; arguments as transformers passes them.

    Returns:
        None where every key of the call is valid.

    Raises:
        VaExportError: the pattern is not plain causal (sliding windows, packed sequences, prefixes), or the cache
            has dropped its first positions.
    """
    if isinstance(attention_mask, ValidKeys):  # `generate` has made it already
        return attention_mask
    if mask_function is not causal_mask_function:
        raise VaExportError(
            "the model asks for another pattern than causal attention (a sliding window, packed sequences or a prefix)",
            where=CUDA_ATTENTION_NAME,
            fix='use the implementation "anchored", which takes any mask',
        )
    refuse_moved_cache(kv_offset, CUDA_ATTENTION_NAME)
    device = kwargs.get("device")
    filled = None
    if not is_known_as(q_offset, kv_length - q_length):
        # A tensor stays on its device: reading it here would wait for the GPU.
        last = torch.as_tensor(q_offset, dtype=torch.int64, device=device) + q_length
        filled = last.reshape(-1).expand(batch_size).contiguous()
    padding = None if attention_mask is None else _padding_log_gain(attention_mask, kv_length)
    return None if filled is None and padding is None else ValidKeys(filled, padding)


def _padding_log_gain(attention_mask: Tensor, kv_length: int) -> Tensor:
    """[B, Skv] from transformers' [B, positions so far], which may be shorter or longer than a static cache."""
    is_key = attention_mask.to(torch.bool)[:, :kv_length]
    is_key = torch.nn.functional.pad(is_key, (0, kv_length - is_key.shape[1]))
    return torch.zeros(is_key.shape, dtype=torch.float32, device=is_key.device).masked_fill(~is_key, float("-inf"))


def anchored_cuda_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: ValidKeys | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    key_log_gain: Tensor | None = None,
    value_gain: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature over `anchored_attention_cuda`.

    Args:
        query, key, value: [B, Hq, Sq, D], [B, Hkv, Skv, D], [B, Hkv, Skv, Dv], keys from the cache included; one of
            float16, bfloat16 and float32, on one GPU; transposed views are not copied.
        attention_mask: what `anchored_cuda_mask` returned.
        key_log_gain, value_gain: [B or 1, at least Skv]: later positions than Skv are ignored.

    Returns:
        ([B, Sq, Hq, Dv], None): attention weights are not returned.
    """
    from va_export.native.anchored_attention import anchored_attention_cuda

    refuse_unsupported(module, dropout, kwargs)
    if attention_mask is not None and not isinstance(attention_mask, ValidKeys):
        raise uncomputed(module, ["a mask of the caller's own"])
    is_causal, key_log_gain, value_gain = gains_of_call(
        module, query, key, value, is_causal, key_log_gain, value_gain, where=CUDA_ATTENTION_NAME
    )
    batch, kv_len = key.shape[0], key.shape[2]
    filled, padding = (None, None) if attention_mask is None else attention_mask
    if padding is not None:  # a padded key is one with gain 0, and log 0 removes it exactly
        key_log_gain = padding if key_log_gain is None else key_log_gain + padding
    output = anchored_attention_cuda(
        query,
        key,
        value,
        None if key_log_gain is None else key_log_gain.float().expand(batch, kv_len),
        None if value_gain is None else value_gain.float().expand(batch, kv_len),
        filled,
        scale=scaling,
        is_causal=is_causal,
    )
    return output.transpose(1, 2), None
