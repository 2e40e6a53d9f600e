"""The decoder in consecutive ranges of layers: which ranges, and how many.

Every range (shard) becomes one ONNX file and one engine. The first takes input embeddings, the others the hidden states
of the shard before; the last has the final norm and the language model's head. A decoder in one shard is the plain
component `decoder`; several are `decoder_0`, `decoder_1`, ….
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from va_export.errors import VaExportError

if TYPE_CHECKING:
    from va_export.models.family import WeightSource

DECODER = "decoder"
_LAYER = re.compile(r"language_model\.layers\.(\d+)\.")


@dataclass(frozen=True)
class DecoderShard:
    """Layers [first_layer, stop_layer) of a decoder of `num_layers`.

    Attributes:
        name: of the component and its files.
    """

    name: str
    first_layer: int
    stop_layer: int
    num_layers: int

    @property
    def is_first(self) -> bool:
        """Whether it takes the input embeddings."""
        return self.first_layer == 0

    @property
    def is_last(self) -> bool:
        """Whether it has the final norm and the head."""
        return self.stop_layer == self.num_layers

    @property
    def layers(self) -> range:
        """Indices of its layers, those of the whole decoder."""
        return range(self.first_layer, self.stop_layer)

    @property
    def input_name(self) -> str:
        """What it takes, (B, S, D) float32."""
        return "inputs_embeds" if self.is_first else "hidden_states"

    @property
    def output_name(self) -> str:
        """What it gives: (B, vocab) or (B, S, D), both float32."""
        return "logits" if self.is_last else "next_hidden_states"


@dataclass(frozen=True)
class DecoderWeights:
    """Bytes of the decoder's weights: of one layer, and of all that is not in a layer (the norm, the head)."""

    layer: int
    rest: int

    def of(self, shard: DecoderShard) -> int:
        """Bytes of one shard."""
        return len(shard.layers) * self.layer + (self.rest if shard.is_last else 0)


def is_decoder(component: str) -> bool:
    """Whether a component of a bundle is the decoder or a shard of it."""
    return component == DECODER or component.startswith(f"{DECODER}_")


def decoder_weights(weight_map: Mapping[str, WeightSource], itemsize: int) -> DecoderWeights:
    """Sizes from the shapes; the largest layer counts for all.

    Args:
        weight_map: a family's, whose names are Hugging Face's.
        itemsize: bytes of a number in the exported precision.
    """
    layers: dict[int, int] = {}
    rest = 0
    for name, source in weight_map.items():
        size = math.prod(source.shape) * itemsize
        if match := _LAYER.search(name):
            layers[int(match.group(1))] = layers.get(int(match.group(1)), 0) + size
        elif "embed_tokens" not in name and ("language_model" in name or "lm_head" in name):
            rest += size
    return DecoderWeights(max(layers.values(), default=0), rest)


def split_decoder(num_layers: int, n_shards: int, weights: DecoderWeights) -> tuple[DecoderShard, ...]:
    """Cut a decoder so that its largest shard is as small as it can be.

    The last shard carries the head, which may weigh as much as several layers, so it gets fewer of them; the others
    differ by one layer at most, the larger ones first.

    Raises:
        VaExportError: less than one shard, or more shards than layers.
    """
    if not 1 <= n_shards <= num_layers:
        raise VaExportError(
            f"a decoder of {num_layers} layers cannot be cut into {n_shards} shards",
            where="--decoder-shards",
            fix=f"give a number from 1 to {num_layers}, or auto",
        )
    if n_shards == 1:
        return (DecoderShard(DECODER, 0, num_layers, num_layers),)

    def largest(in_last: int) -> tuple[int, int]:
        others = math.ceil((num_layers - in_last) / (n_shards - 1)) * weights.layer
        # Of equals the cut nearest to even layers, which is the one that leaves the last shard most.
        return max(others, in_last * weights.layer + weights.rest), -in_last

    # No more layers in the last shard than in an even cut: the head only ever takes layers away from it.
    in_last = min(range(1, num_layers // n_shards + 1), key=largest)
    each, larger = divmod(num_layers - in_last, n_shards - 1)
    counts = [each + 1] * larger + [each] * (n_shards - 1 - larger) + [in_last]
    shards, first = [], 0
    for index, count in enumerate(counts):
        shards.append(DecoderShard(f"{DECODER}_{index}", first, first + count, num_layers))
        first += count
    return tuple(shards)
