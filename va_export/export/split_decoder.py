"""How many layers each shard of a decoder gets, by what their weights take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from va_export.bundle.decoder_shards import DECODER, DecoderShard
from va_export.errors import VaExportError
from va_export.models.family import WeightSource


@dataclass(frozen=True)
class DecoderWeights:
    """Bytes of the decoder's weights: of one layer, and of all that is not in a layer (the norm, the head)."""

    layer: int
    rest: int

    def of(self, shard: DecoderShard) -> int:
        """Bytes of one shard."""
        return len(shard.layers) * self.layer + (self.rest if shard.is_last else 0)


def decoder_weights(weight_map: Mapping[str, WeightSource], itemsize: int) -> DecoderWeights:
    """Sizes from the shapes; the largest layer counts for all.

    Args:
        itemsize: bytes of a number in the exported precision.
    """
    layers: dict[int, int] = {}
    rest = 0
    for source in weight_map.values():
        size = math.prod(source.shape) * itemsize
        if source.layer is not None:
            layers[source.layer] = layers.get(source.layer, 0) + size
        elif source.component == "decoder":
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
