"""The static KV cache inside the traced decoder: ONNX `TensorScatter`-24, written in place by the runtimes that can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch


@cache
def tensor_scatter_op() -> Callable[..., torch.Tensor]:
    """`torch.ops.va_export.tensor_scatter`: ONNX TensorScatter (mode linear, axis 2) as a PyTorch op."""

    @torch.library.custom_op("va_export::tensor_scatter", mutates_args=())
    def op(past: torch.Tensor, update: torch.Tensor, write_index: torch.Tensor) -> torch.Tensor:
        present = past.clone()
        steps = write_index[:, None] + torch.arange(update.shape[2], device=past.device)
        index = steps[:, None, :, None].expand_as(update)
        return present.scatter_(2, index, update)

    @op.register_fake
    def _(past: torch.Tensor, update: torch.Tensor, write_index: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(past)

    return op


def onnx_translation() -> dict[Callable[..., object], Callable[..., object]]:
    """The entry for `torch.onnx.export(custom_translation_table=…)`."""
    import onnxscript

    opset = onnxscript.values.Opset("", 24)

    def translate(past: Any, update: Any, write_index: Any) -> Any:
        return opset.TensorScatter(past, update, write_index, axis=2, mode="linear")

    tensor_scatter_op()
    return {torch.ops.va_export.tensor_scatter.default: translate}


class StaticKvCache:
    """The part of Hugging Face's cache protocol that attention layers call, over caches of fixed capacity.

    Args:
        past: key and value of layer 0, key and value of layer 1, …; each (batch, kv_heads, capacity, head_dim).
        past_length: (batch,), how many slots are already written; new keys and values go behind them.
        first_layer: the index of the layer that the first pair belongs to.
    """

    def __init__(self, past: Sequence[torch.Tensor], past_length: torch.Tensor, first_layer: int = 0) -> None:
        self._past = past
        self._past_length = past_length
        self._first_layer = first_layer
        self._present: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (batch, kv_heads, q_len, head_dim) behind the past; returns both caches at full capacity."""
        scatter = tensor_scatter_op()
        slot = 2 * (layer_idx - self._first_layer)
        present = (
            scatter(self._past[slot], key, self._past_length),
            scatter(self._past[slot + 1], value, self._past_length),
        )
        self._present[layer_idx] = present
        return present

    def present(self) -> tuple[torch.Tensor, ...]:
        """The written caches, in the order of `past`."""
        return tuple(tensor for layer in sorted(self._present) for tensor in self._present[layer])
