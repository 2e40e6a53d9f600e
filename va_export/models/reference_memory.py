"""How much memory the reference takes, whole and streamed, and which of the two fits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from va_export.models.family import ModelSpec, WeightSource

_FLOAT32 = 4
# Sides (with anchors and without) whose KV caches and hidden states live at once when the weights are streamed.
_SIDES = 2
# Arrays of the size of the attention's logits that are alive at once, and how many logits they hold at the most unless
# one KV head alone has more (`anchor.attention`); arrays of a layer's width besides.
_LOGIT_ARRAYS, _MOST_LOGITS = 4, 1 << 26
_WIDTH_ARRAYS = 4
# A whole model leaves this share of the available memory to the page cache and to everybody else.
_HEADROOM = 0.9


@dataclass(frozen=True)
class ReferenceMemory:
    """Bytes of peak memory beside the libraries: with all weights in memory, with one module's at a time, and without
    any (hidden states, logits of the attention, KV cache)."""

    whole: int
    streamed: int
    activations: int

    def must_stream(self, available: int) -> bool:
        """Whether the model in float32 does not fit into `available` bytes."""
        return self.whole > _HEADROOM * available


def reference_memory(
    spec: ModelSpec, weight_map: Mapping[str, WeightSource], prompt_tokens: int, frames: int, new_tokens: int
) -> ReferenceMemory:
    """Estimate from the shapes alone."""
    text, vision = spec.text, spec.vision
    length = prompt_tokens + new_tokens
    one_kv_head = text.num_heads // text.num_kv_heads * prompt_tokens * length
    logits = max(one_kv_head, min(_MOST_LOGITS, text.num_kv_heads * one_kv_head))
    layer = _WIDTH_ARRAYS * (text.intermediate_size + 2 * text.hidden_size) * prompt_tokens
    decoder = _LOGIT_ARRAYS * logits + layer
    cache = text.num_layers * 2 * text.num_kv_heads * text.head_dim * length
    positions = frames * vision.positions_per_frame
    tower = _WIDTH_ARRAYS * (vision.intermediate_size + 2 * vision.hidden_size) * positions
    weights = sum(math.prod(source.shape) for source in weight_map.values())
    side = cache + prompt_tokens * text.hidden_size
    return ReferenceMemory(
        activations=_FLOAT32 * max(decoder + side, tower),
        whole=_FLOAT32 * (weights + max(decoder + side, tower)),
        streamed=_FLOAT32 * (_largest_module(weight_map) + max(decoder + _SIDES * side, tower)),
    )


def _largest_module(weight_map: Mapping[str, WeightSource]) -> int:
    """Elements of the largest set of weights that is resident at once: a decoder layer, or a single matrix."""
    sizes: dict[str | int, int] = {}
    for name, source in weight_map.items():
        module = name if source.layer is None else source.layer
        sizes[module] = sizes.get(module, 0) + math.prod(source.shape)
    return max(sizes.values())
