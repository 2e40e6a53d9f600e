"""Where a decoder is cut: against every possible cut, and against the weights of a real family."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from va_export.export.plan import component_bytes
from va_export.export.split_decoder import DecoderWeights, decoder_weights, split_decoder


def largest_of_every_cut(num_layers: int, n_shards: int, weights: DecoderWeights) -> int:
    """The least possible size of the largest shard, by trying all cuts."""
    best = None
    for cuts in itertools.combinations(range(1, num_layers), n_shards - 1):
        counts = [stop - start for start, stop in itertools.pairwise((0, *cuts, num_layers))]
        sizes = [count * weights.layer for count in counts]
        sizes[-1] += weights.rest
        best = max(sizes) if best is None else min(best, max(sizes))
    assert best is not None
    return best


@settings(deadline=None)
@given(st.integers(1, 10), st.integers(1, 10), st.integers(1, 500), st.integers(0, 3000))
def test_no_cut_has_a_smaller_largest_shard(num_layers: int, n_shards: int, layer: int, rest: int) -> None:
    n_shards = min(n_shards, num_layers)
    weights = DecoderWeights(layer, rest)
    shards = split_decoder(num_layers, n_shards, weights)
    assert len(shards) == n_shards
    assert [index for shard in shards for index in shard.layers] == list(range(num_layers))  # in order, each once
    assert all(len(shard.layers) >= 1 for shard in shards)
    assert [shard.is_first for shard in shards] == [index == 0 for index in range(n_shards)]
    assert [shard.is_last for shard in shards] == [index == n_shards - 1 for index in range(n_shards)]
    assert max(map(weights.of, shards)) == largest_of_every_cut(num_layers, n_shards, weights)
    assert sum(map(weights.of, shards)) == num_layers * layer + rest


def test_one_shard_is_the_plain_decoder() -> None:
    (shard,) = split_decoder(32, 1, DecoderWeights(1, 1))
    assert (shard.name, shard.input_name, shard.output_name) == ("decoder", "inputs_embeds", "logits")
    first, middle, last = split_decoder(5, 3, DecoderWeights(1, 0))
    assert [shard.name for shard in (first, middle, last)] == ["decoder_0", "decoder_1", "decoder_2"]
    assert [shard.input_name for shard in (first, middle, last)] == ["inputs_embeds", "hidden_states", "hidden_states"]
    assert [shard.output_name for shard in (first, last)] == ["next_hidden_states", "logits"]


def test_a_heavy_head_takes_layers_from_the_last_shard() -> None:
    # InternVL2-8B in float16: 436 MB a layer, 758 MB of head.
    shards = split_decoder(32, 4, DecoderWeights(436, 758))
    assert [len(shard.layers) for shard in shards] == [9, 8, 8, 7]
    # A small model with a large vocabulary: the head weighs nine layers.
    assert [len(shard.layers) for shard in split_decoder(24, 4, DecoderWeights(30, 272))] == [8, 8, 7, 1]


@pytest.mark.parametrize("n_shards", [0, -1, 5])
def test_as_many_shards_as_layers_at_the_most(n_shards: int) -> None:
    with refused("--decoder-shards", 4, n_shards) as caught:
        split_decoder(4, n_shards, DecoderWeights(1, 0))
    assert "1 to 4" in str(caught.value.fix)


def test_sizes_are_those_of_the_files(sharded_bundle: Path, deep_checkpoint: Path) -> None:
    from va_export.checkpoint.files import Checkpoint
    from va_export.models import family_named

    family = family_named("internvl2")
    weight_map = family.weight_map(family.spec_from_checkpoint(Checkpoint.open(deep_checkpoint)))
    weights = decoder_weights(weight_map, 2)
    assert 4 * weights.layer + weights.rest == component_bytes(weight_map, "fp16")["decoder"]
    for shard in split_decoder(4, 2, weights):
        written = (sharded_bundle / "onnx" / f"{shard.name}.onnx.data").stat().st_size
        # Tensors start at multiples of the alignment, and the smallest stay in the graph: under a tenth here.
        assert math.isclose(written, weights.of(shard), rel_tol=0.1)
