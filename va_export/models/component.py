"""A component: one part of the model that becomes one ONNX file and, for each TensorRT, one engine.

A family lists its components (`ModelFamily.components`); tracing, profiles, planning, shards, backends and the proof
only loop over them. The parts that any family shares, the token embedding and the decoder, are described here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from va_export.bundle.decoder_shards import DecoderShard
from va_export.bundle.tensors import DataType, DimensionRange, Profiles, TensorInfo
from va_export.settings import Limits, ScoreSettings

if TYPE_CHECKING:
    import torch
    from torch import nn

    from va_export.models.family import ModelSpec

# Which part of the model a weight or a component belongs to. The names are those of the options and of the files.
Role = Literal["vision", "embedding", "decoder"]
ROLES: tuple[Role, ...] = ("vision", "embedding", "decoder")
SCORE = "score"  # beside them, without weights: SubspaceScore's graph

CACHE_TYPES: dict[str, DataType] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
PAST, PRESENT = "past_key_values", "present"


@dataclass(frozen=True)
class Component:
    """One part of the model.

    Attributes:
        name: of its files; a decoder in one piece is `decoder`, shards are `decoder_0`, `decoder_1`, ….
        role: which of the model's parts it is, or is a piece of; or the score.
        inputs, outputs: what its graph takes and gives, in order. Everything that passes between components is
            float32 at any precision, so that hosts need to know one type.
        build: Hugging Face model → a module that takes the inputs positionally and returns the outputs as a flat tuple
            (or the one output). It holds the model as attribute `hf`, so that parameters are called `hf.` and their
            own names. None where the graph is not traced.
        ranges: the limits → the shapes that engines are built for.
        shard: the decoder's layers in it.
        has_custom_op: whether its graph holds an operator of ours, which a plugin may serve. If it is
            AnchoredAttention, the graph has a second form in standard operators.
        reference: (Hugging Face model, inputs in order) → the output, as the proof's reference computes it; None where
            `build`'s module is Hugging Face's own forward.
    """

    name: str
    role: Role | Literal["score"]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    build: Callable[[Any], nn.Module] | None
    ranges: Callable[[Limits], Profiles]
    shard: DecoderShard | None = None
    has_custom_op: bool = False
    reference: Callable[[Any, Sequence[torch.Tensor]], torch.Tensor] | None = None

    @property
    def has_native_form(self) -> bool:
        """Whether there is a second graph over its weights, without the custom op."""
        return self.has_custom_op and self.build is not None


def embedding_component(spec: ModelSpec, visual_tokens: Callable[[int], int]) -> Component:
    """Token ids and visual tokens → input embeddings.

    Args:
        visual_tokens: frames → visual tokens at the most.
    """
    width = spec.text.width_at(0)

    def build(hf: Any) -> nn.Module:
        from va_export.graph.embedding import EmbeddingGraph

        return EmbeddingGraph(hf)

    def ranges(limits: Limits) -> Profiles:
        largest = visual_range(limits, visual_tokens)
        most = largest.max * limits.max_batch_size
        return {"tokens": {**_prompt(limits), "visual_count": DimensionRange(1, largest.opt, most)}}

    return Component(
        "embedding",
        "embedding",
        (
            TensorInfo("input_ids", "int64", ("batch", "sequence")),
            TensorInfo("is_visual", "bool", ("batch", "sequence")),
            TensorInfo("visual_tokens", "float32", ("visual_count", width)),
        ),
        (TensorInfo("inputs_embeds", "float32", ("batch", "sequence", width)),),
        build,
        ranges,
    )


def decoder_component(spec: ModelSpec, precision: str, shard: DecoderShard, position_axes: int = 1) -> Component:
    """Input embeddings (or the hidden states of the shard before), positions, gains and a static KV cache → logits of
    the last position (or hidden states), and the cache with the new keys and values written.

    Args:
        position_axes: how many position ids a token has: 1, or 3 for time, row and column.
    """
    text = spec.text

    def build(hf: Any) -> nn.Module:
        from va_export.graph.decoder import DecoderGraph

        return DecoderGraph(hf, shard)

    def ranges(limits: Limits) -> Profiles:
        # Decode's range ends at two: where a profile holds one row of one token and nothing else, RTX stores every
        # weight a second time in another layout (measured: the engine's size doubles); with a range it shares them.
        decode = DimensionRange(1, 1, min(2, limits.max_input_len))
        prompt = _prompt(limits)
        return {"prefill": prompt, "decode": {**prompt, "sequence": decode}}

    cache = ("batch", text.num_kv_heads, "capacity", text.head_dim)
    dtype = CACHE_TYPES[precision]
    into, out_of = (("batch", "sequence", text.width_at(layer)) for layer in (shard.first_layer, shard.stop_layer))
    return Component(
        shard.name,
        "decoder",
        (
            TensorInfo(shard.input_name, "float32", into),
            TensorInfo("position_ids", "int64", (position_axes, "batch", "sequence")),
            TensorInfo("key_log_gain", "float32", ("batch", "capacity")),
            TensorInfo("value_gain", "float32", ("batch", "capacity")),
            TensorInfo("past_length", "int64", ("batch",)),
            *(TensorInfo(name, dtype, cache) for name in cache_names(PAST, shard.layers)),
        ),
        (
            TensorInfo(shard.output_name, "float32", ("batch", text.vocab_size) if shard.is_last else out_of),
            *(TensorInfo(name, dtype, cache) for name in cache_names(PRESENT, shard.layers)),
        ),
        build,
        ranges,
        shard,
        has_custom_op=True,
    )


def score_component(spec: ModelSpec, visual_tokens: Callable[[int], int], score: ScoreSettings) -> Component:
    """Visual tokens of one video, without what the decoder's first layers add → their sharing scores and subspaces; the
    graph is `graph.score.score_model`'s, which takes no fewer tokens than it makes subspaces or principal components
    of."""

    def ranges(limits: Limits) -> Profiles:
        sizes = visual_range(limits, visual_tokens)
        least = min(max(2, score.n_subspaces, score.pca_rank), sizes.opt)
        return {"tokens": {"visual_count": DimensionRange(least, sizes.opt, sizes.max)}}

    return Component(
        SCORE,
        "score",
        (TensorInfo("visual_tokens", "float32", ("visual_count", spec.text.hidden_size)),),
        (TensorInfo("sharing_score", "float32", ("visual_count",)), TensorInfo("labels", "int64", ("visual_count",))),
        None,
        ranges,
        has_custom_op=True,
    )


def visual_range(limits: Limits, visual_tokens: Callable[[int], int]) -> DimensionRange:
    """Visual tokens of a prompt; where frames keep their sizes, the prompt's length may be what limits them.

    Args:
        visual_tokens: frames → visual tokens at the most.
    """
    most = min(visual_tokens(limits.max_frames), limits.max_input_len)
    return DimensionRange(1, min(visual_tokens(limits.opt_frames), limits.opt_input_len, most), most)


def cache_names(prefix: str, layers: Iterable[int]) -> list[str]:
    """`{prefix}.0.key`, `{prefix}.0.value`, `{prefix}.1.key`, … as Hugging Face's ONNX exports name them."""
    return [f"{prefix}.{layer}.{part}" for layer in layers for part in ("key", "value")]


def _prompt(limits: Limits) -> dict[str, DimensionRange]:
    return {
        "batch": DimensionRange(1, 1, limits.max_batch_size),
        "sequence": DimensionRange(1, limits.opt_input_len, limits.max_input_len),
    }
