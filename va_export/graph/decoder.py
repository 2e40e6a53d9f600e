"""The decoder: input embeddings, gains and a static KV cache → logits of the last position and the written cache."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from va_export.bundle.decoder_shards import DECODER, DecoderShard
from va_export.graph import attention
from va_export.graph.component import Component
from va_export.graph.kv_cache import StaticKvCache
from va_export.models.family import ModelSpec


class DecoderGraph(torch.nn.Module):
    """Prefill, chunked prefill and decode in one graph, of all layers or of a shard of them.

    Hidden states go from shard to shard in float32, as everything between components does. It holds every float16 and
    bfloat16 exactly, and the graphs keep hidden states in their own precision, so each shard starts from the very
    numbers that the one before ended with.

    Args of forward:
        inputs_embeds: (B, S, D) float32; the hidden states of the shard before where this is not the first.
        key_log_gain, value_gain: (B, C) float32 over cache slots; zeros and ones for plain attention, which is what a
            one-token step must be given.
        past_length: (B,) int64, slots written before this call.
        past: 2 · layers caches (B, Hkv, C, head_dim) in the model's precision.

    Returns (B, vocab) float32 logits of the last position, or (B, S, D) float32 hidden states where this is not the
    last shard; then the caches with S more slots written.
    """

    def __init__(self, hf: Any, shard: DecoderShard) -> None:
        super().__init__()
        self.hf: Any = hf
        self._shard = shard

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        key_log_gain: torch.Tensor,
        value_gain: torch.Tensor,
        past_length: torch.Tensor,
        *past: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        language_model = self.hf.model.language_model
        q_len = inputs_embeds.shape[1]
        position_ids = past_length[:, None] + torch.arange(q_len, device=past_length.device)
        hidden_states = inputs_embeds.to(past[0].dtype)
        position_embeddings = language_model.rotary_emb(hidden_states, position_ids)
        kv_cache = StaticKvCache(past, past_length, self._shard.first_layer)
        # The layers are called one by one rather than through the model's forward: that one prepares a dense causal
        # mask, which the op makes needless, and a loop here is what splits into ranges of layers.
        for layer in language_model.layers[self._shard.first_layer : self._shard.stop_layer]:
            hidden_states = layer(
                hidden_states,
                position_embeddings=position_embeddings,
                past_key_values=kv_cache,
                key_log_gain=key_log_gain,
                value_gain=value_gain,
                kv_length=past_length + q_len,
            )
        if not self._shard.is_last:
            return (hidden_states.to(torch.float32), *kv_cache.present())
        last = language_model.norm(hidden_states[:, -1:])
        logits = self.hf.lm_head(last)[:, 0].to(torch.float32)
        return (logits, *kv_cache.present())


def cache_names(prefix: str, layers: Iterable[int]) -> list[str]:
    """`{prefix}.0.key`, `{prefix}.0.value`, `{prefix}.1.key`, … as Hugging Face's ONNX exports name them."""
    return [f"{prefix}.{layer}.{part}" for layer in layers for part in ("key", "value")]


def decoder_component(hf: Any, spec: ModelSpec, shard: DecoderShard | None = None) -> Component:
    """The decoder or a shard of it; call it under the fake tensor mode that `hf` was made in."""
    shard = shard or DecoderShard(DECODER, 0, spec.text.num_layers, spec.text.num_layers)
    hf.model.language_model.config._attn_implementation = attention.register()
    text = spec.text
    dtype = hf.get_input_embeddings().weight.dtype
    batch, q_len, capacity = (
        2,
        3,
        17,
    )  # distinct from each other and from 1, so that no two symbols are taken for one
    inputs = {
        shard.input_name: torch.zeros(batch, q_len, text.hidden_size),
        "key_log_gain": torch.zeros(batch, capacity),
        "value_gain": torch.ones(batch, capacity),
        "past_length": torch.zeros(batch, dtype=torch.int64),
    }
    dynamic: dict[str, dict[int, str]] = {
        shard.input_name: {0: "batch", 1: "sequence"},
        "key_log_gain": {0: "batch", 1: "capacity"},
        "value_gain": {0: "batch", 1: "capacity"},
        "past_length": {0: "batch"},
    }
    for name in cache_names("past_key_values", shard.layers):
        inputs[name] = torch.zeros(batch, text.num_kv_heads, capacity, text.head_dim, dtype=dtype)
        dynamic[name] = {0: "batch", 2: "capacity"}
    return Component(
        name=shard.name,
        module=DecoderGraph(hf, shard),
        inputs=inputs,
        dynamic=dynamic,
        outputs=(shard.output_name, *cache_names("present", shard.layers)),
    )
