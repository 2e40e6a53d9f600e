"""Decoder shards → ONNX graphs: one trace for each distinct shape of shard, its layers renumbered for the others."""

from __future__ import annotations

import re
from typing import Any

import onnx_ir as ir

from va_export.bundle.decoder_shards import DecoderShard
from va_export.graph.decoder import cache_names, decoder_component
from va_export.graph.trace import FakeModel
from va_export.models.family import ModelFamily, ModelSpec
from va_export.passes import run_passes

_LAYER = re.compile(r"(?<=language_model\.layers\.)\d+(?=\.)")


class ShardTracer:
    """Gives the graphs of one decoder's shards, passes run, without weights.

    Shards of equal layers, none of them the last, differ in nothing but the layers' numbers: those share a trace.
    """

    def __init__(self, family: ModelFamily, spec: ModelSpec, precision: str) -> None:
        self._spec = spec
        self._model = FakeModel(family, spec, precision)
        self._traced: dict[object, tuple[DecoderShard, ir.Model]] = {}

    def graph(self, shard: DecoderShard) -> ir.Model:
        """The graph of one shard; the caller may change it."""
        layers = self._model.hf.model.language_model.layers
        shape = (shard.is_last, *(_signature(layers[index]) for index in shard.layers))
        if shape not in self._traced:
            model = run_passes(self._model.trace(lambda hf: decoder_component(hf, self._spec, shard)))
            self._traced[shape] = (shard, model)
        traced, model = self._traced[shape]
        copy = model.clone()
        _renumber(copy, traced, shard)
        return copy

    @property
    def n_traces(self) -> int:
        """How many graphs were traced."""
        return len(self._traced)


def _signature(layer: Any) -> tuple[object, ...]:
    """What decides a layer's graph: its modules, their plain attributes (a sliding window's size, say) and their
    parameters' shapes. The layer's own number is left out."""
    return tuple(
        (
            name,
            type(module).__qualname__,
            tuple(
                (key, value)
                for key, value in sorted(vars(module).items())
                if key != "layer_idx" and isinstance(value, bool | int | float | str | None)
            ),
            tuple((key, tuple(value.shape)) for key, value in module.named_parameters(recurse=False)),
        )
        for name, module in layer.named_modules()
    )


def _renumber(model: ir.Model, traced: DecoderShard, shard: DecoderShard) -> None:
    """Turn the graph of one shard into that of another of the same shape."""
    shift = shard.first_layer - traced.first_layer
    graph = model.graph
    graph.name = shard.name
    for name, value in list(graph.initializers.items()):
        renamed = _LAYER.sub(lambda match: str(int(match.group()) + shift), name)
        if renamed != name:
            del graph.initializers[name]
            value.name = renamed
            graph.initializers[renamed] = value
    for prefix, values in (("past_key_values", graph.inputs), ("present", graph.outputs)):
        names = dict(
            zip(cache_names(prefix, traced.layers), cache_names(prefix, shard.layers), strict=True),
        )
        for value in values:
            value.name = names.get(str(value.name), value.name)
    graph.inputs[0].name, graph.outputs[0].name = shard.input_name, shard.output_name
