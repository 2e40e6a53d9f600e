"""The decoder: input embeddings, gains and a static KV cache → logits of the last position and the written cache."""

from __future__ import annotations

from typing import Any

import torch

from va_export.anchor.hugging_face_cache import with_cache
from va_export.bundle.decoder_shards import DecoderShard
from va_export.graph import attention
from va_export.graph.kv_cache import StaticKvCache
from va_export.models.deepstack import split_features


class DecoderGraph(torch.nn.Module):
    """Prefill, chunked prefill and decode in one graph, of all layers or of a shard of them.

    Hidden states go from shard to shard in float32, as everything between components does. It holds every float16 and
    bfloat16 exactly, and the graphs keep hidden states in their own precision, so each shard starts from the very
    numbers that the one before ended with.

    Args of forward:
        inputs_embeds: (B, S, D) float32; the hidden states of the shard before where this is not the first. Behind them
            the features that the next layers add to visual tokens, where the model has such.
        position_ids: (axes, B, S) int64, what rotary embeddings turn by; slots of the cache are counted apart.
        key_log_gain, value_gain: (B, C) float32 over cache slots; zeros and ones for plain attention, which is what a
            one-token step must be given.
        past_length: (B,) int64, slots written before this call.
        past: 2 · layers caches (B, Hkv, C, head_dim) in the model's precision.

    Returns (B, vocab) float32 logits of the last position, or (B, S, D) float32 hidden states where this is not the
    last shard; then the caches with S more slots written.
    """

    def __init__(self, hf: Any, shard: DecoderShard) -> None:
        super().__init__()
        hf.model.language_model.config._attn_implementation = attention.register()
        self.hf: Any = hf
        self._shard = shard

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        position_ids: torch.Tensor,
        key_log_gain: torch.Tensor,
        value_gain: torch.Tensor,
        past_length: torch.Tensor,
        *past: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        language_model = self.hf.model.language_model
        q_len = inputs_embeds.shape[1]
        hidden_states, *features = split_features(inputs_embeds.to(past[0].dtype), language_model.config.hidden_size)
        # One axis is (B, S), as text models want it; several stay (axes, B, S).
        positions = position_ids[0] if position_ids.shape[0] == 1 else position_ids
        position_embeddings = language_model.rotary_emb(hidden_states, positions)
        kv_cache = StaticKvCache(past, past_length, self._shard.first_layer)
        # The layers are called one by one rather than through the model's forward: that one prepares a dense causal
        # mask, which the op makes needless, and a loop here is what splits into ranges of layers.
        for layer in language_model.layers[self._shard.first_layer : self._shard.stop_layer]:
            hidden_states = layer(
                hidden_states,
                position_embeddings=position_embeddings,
                key_log_gain=key_log_gain,
                value_gain=value_gain,
                kv_length=past_length + q_len,
                **with_cache(layer, kv_cache),
            )
            if features:
                hidden_states = hidden_states + features.pop(0)
        if not self._shard.is_last:
            states = torch.cat((hidden_states, *features), dim=-1) if features else hidden_states
            return (states.to(torch.float32), *kv_cache.present())
        last = language_model.norm(hidden_states[:, -1:])
        logits = self.hf.lm_head(last)[:, 0].to(torch.float32)
        return (logits, *kv_cache.present())
