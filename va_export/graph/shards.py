"""Decoder shards → ONNX graphs: one trace for each distinct shape of shard, its layers renumbered for the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from va_export.graph.trace import FakeModel
from va_export.models.component import PAST, PRESENT, Component, cache_names
from va_export.models.family import WeightSource
from va_export.passes import run_passes


class ShardTracer:
    """Gives the graphs of one decoder's shards, passes run, without weights.

    Shards of equal layers and widths, none of them the last, differ in nothing but the layers' numbers: those share a
    trace.
    """

    def __init__(self, model: FakeModel, weight_map: Mapping[str, WeightSource]) -> None:
        self._model = model
        self._of_layer: dict[int, list[str]] = {}  # a layer's weights, in one order for all layers
        for name, source in weight_map.items():
            if source.layer is not None:
                self._of_layer.setdefault(source.layer, []).append(name)
        self._traced: dict[object, tuple[Component, ir.Model]] = {}

    def graph(self, component: Component) -> ir.Model:
        """The graph of one shard; the caller may change it."""
        assert component.shard is not None
        layers = self._model.hf.model.language_model.layers
        widths = component.inputs[0].shape, component.outputs[0].shape  # features that are added on the way narrow them
        shape = (component.shard.is_last, widths, *(_signature(layers[index]) for index in component.shard.layers))
        if shape not in self._traced:
            self._traced[shape] = (component, run_passes(self._model.trace(component)))
        traced, model = self._traced[shape]
        copy = model.clone()
        self._renumber(copy, traced, component)
        return copy

    @property
    def n_traces(self) -> int:
        """How many graphs were traced."""
        return len(self._traced)

    def _renumber(self, model: ir.Model, traced: Component, component: Component) -> None:
        """Turn the graph of one shard into that of another of the same shape."""
        assert traced.shard is not None and component.shard is not None
        before, after = traced.shard.layers, component.shard.layers
        graph = model.graph
        graph.name = component.name
        names = {
            old: new
            for first, second in zip(before, after, strict=True)
            for old, new in zip(self._of_layer[first], self._of_layer[second], strict=True)
        }
        renamed = {name: names.get(name, name) for name in graph.initializers}
        values = {new: graph.initializers.pop(old) for old, new in renamed.items() if old != new}
        for new, value in values.items():
            value.name = new
            graph.initializers[new] = value
        for prefix, tensors in ((PAST, graph.inputs), (PRESENT, graph.outputs)):
            slots = dict(zip(cache_names(prefix, before), cache_names(prefix, after), strict=True))
            for value in tensors:
                value.name = slots.get(str(value.name), value.name)
        graph.inputs[0].name, graph.outputs[0].name = component.inputs[0].name, component.outputs[0].name


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
