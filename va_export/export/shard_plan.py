"""How many decoder shards a run makes: what was asked for, or what the free memory allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from va_export.bundle.decoder_shards import DECODER, DecoderShard
from va_export.bundle.journal import Journal, Record
from va_export.errors import VaExportError
from va_export.export.split_decoder import DecoderWeights, decoder_weights, split_decoder
from va_export.host_memory import available_memory

if TYPE_CHECKING:
    from va_export.export.recipe import ExportOptions
    from va_export.export.source import Model

ITEM_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
# An engine holds its weights once; its build holds them about twice (measured with TensorRT-RTX 1.7).
_BUILD_FACTOR = 2.0
# A build process before it holds weights: Python, ONNX, TensorRT and the plugin.
_BUILD_BASE = 600 << 20
# The exporting process, which waits meanwhile: Python with torch, transformers and ONNX Runtime loaded.
EXPORT_BASE = 1 << 30
# What `auto` leaves to others of the memory that is free now.
_SHARE = 0.8


class ShardsRecord(Record, frozen=True, tag="decoder shards"):
    """How many there are, and why, in the journal of an unfinished export."""

    count: int
    reason: str


@dataclass(frozen=True)
class ShardPlan:
    """The shards of one export.

    Attributes:
        shards: in order; empty when the decoder is not exported.
        weights: sizes, for `DecoderWeights.of`.
        asked: `auto`, or the number that was given.
        reason: why there are so many.
    """

    shards: tuple[DecoderShard, ...]
    weights: DecoderWeights
    asked: str
    reason: str

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of weights by the shard's name."""
        return {shard.name: self.weights.of(shard) for shard in self.shards}

    def to_mapping(self) -> dict[str, Any]:
        """The manifest's `decoder_shards`."""
        return {"count": len(self.shards), "asked": self.asked, "reason": self.reason}


def build_memory(weight_bytes: int) -> int:
    """Peak memory of the process that builds an engine with so many bytes of weights."""
    return _BUILD_BASE + int(_BUILD_FACTOR * weight_bytes)


def plan_shards(options: ExportOptions, model: Model, *, builds_engines: bool) -> ShardPlan:
    """Decide on the shards.

    Raises:
        VaExportError: more shards were asked for than there are layers.
    """
    weights = decoder_weights(model.weight_map, ITEM_BYTES[options.precision])
    num_layers = model.spec.text.num_layers
    asked = "auto" if options.decoder_shards is None else str(options.decoder_shards)
    if DECODER not in options.components:
        return ShardPlan((), weights, asked, "the decoder is not exported")
    if options.decoder_shards is not None:
        shards = split_decoder(num_layers, options.decoder_shards, weights)
        return ShardPlan(shards, weights, asked, "as many as were asked for")
    if not builds_engines:
        return ShardPlan(split_decoder(num_layers, 1, weights), weights, asked, "no engines are built")
    available = available_memory()
    shards = fitting_shards(num_layers, weights, available)
    need, free = EXPORT_BASE + build_memory(max(map(weights.of, shards))), f"{available / 1e9:.1f} GB"
    reason = f"the largest build needs {need / 1e9:.1f} GB, {free} are available"
    return ShardPlan(shards, weights, asked, reason)


def keep_shards(planned: ShardPlan, num_layers: int, journal: Journal) -> ShardPlan:
    """The shards that an earlier run of the same export began with, or else the planned ones, noted in the journal.

    `auto` looks at the memory that is free, which another day is another; files of two plans do not fit together.
    """
    earlier = journal.of(ShardsRecord)
    if not earlier:
        journal.append(ShardsRecord(len(planned.shards), planned.reason))
        return planned
    count, reason = earlier[0].count, earlier[0].reason
    if count == len(planned.shards):
        return planned
    shards = split_decoder(num_layers, count, planned.weights)
    return ShardPlan(shards, planned.weights, planned.asked, f"as the unfinished run began: {reason}")


def fitting_shards(num_layers: int, weights: DecoderWeights, available: int) -> tuple[DecoderShard, ...]:
    """The fewest shards of which each can be built in `_SHARE` of the available bytes; one a layer if none can."""
    for n_shards in range(1, num_layers + 1):
        shards = split_decoder(num_layers, n_shards, weights)
        if EXPORT_BASE + build_memory(max(map(weights.of, shards))) <= _SHARE * available:
            break
    return shards


def parse_shards(text: str) -> int | None:
    """`auto` → None, or a number.

    Raises:
        VaExportError: neither.
    """
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise VaExportError(
            f"the number of decoder shards cannot be {text!r}",
            where="--decoder-shards",
            fix="give a number of at least 1, or auto",
        )
    return int(text)
