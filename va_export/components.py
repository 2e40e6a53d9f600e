"""Checkpoint → ONNX files, one component after another."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from va_export.decoder_shards import DECODER, is_decoder

if TYPE_CHECKING:
    import onnx_ir as ir

    from va_export.bundle.write import BundleWriter
    from va_export.progress import StageDisplay
    from va_export.recipe import ExportOptions
    from va_export.shard_plan import ShardPlan
    from va_export.source import Source


def write_components(
    options: ExportOptions, source: Source, shards: ShardPlan, bundle: BundleWriter, display: StageDisplay
) -> dict[str, dict[str, Any]]:
    """Trace every component and write its ONNX files; returns the manifest's `components`."""
    from va_export.graph.native import write_native_form
    from va_export.graph.write_onnx import check_onnx, write_onnx

    weight_map = source.family.weight_map(source.spec)
    entries: dict[str, dict[str, Any]] = {}
    for name, graph in _graphs(options, source, shards).items():
        with display.stage(f"export {name}") as stage:
            model = graph()
            path = bundle.path(f"onnx/{name}.onnx")
            n_weights = len(model.graph.initializers)
            done = iter(range(1, n_weights + 1))
            write_onnx(
                model,
                path,
                source.checkpoint,
                weight_map,
                lambda *_, d=done, n=n_weights, s=stage: s.advance(next(d, n), n),
            )
            entries[name] = {"onnx": f"onnx/{name}.onnx"}
            if is_decoder(name):
                write_native_form(path, bundle.path(f"onnx/{name}_native.onnx"))
                entries[name]["onnx_native"] = f"onnx/{name}_native.onnx"
            for relative in entries[name].values():
                check_onnx(bundle.path(relative))
            stage.say(f"{sum(1 for _ in model.graph)} nodes, {n_weights} tensors")
    for shard in shards.shards if len(shards.shards) > 1 else ():
        entries[shard.name]["layers"] = [shard.first_layer, shard.stop_layer]
    return entries


def _graphs(options: ExportOptions, source: Source, shards: ShardPlan) -> dict[str, Callable[[], ir.Model]]:
    """What makes the graph of each component, passes run and without weights; several shards of a decoder are a
    component each."""
    from va_export.graph.shards import ShardTracer
    from va_export.graph.trace import trace_component
    from va_export.passes import run_passes

    def whole(name: str) -> ir.Model:
        return run_passes(trace_component(name, source.family, source.spec, options.precision))

    graphs: dict[str, Callable[[], ir.Model]] = {}
    for name in options.components:
        if name == DECODER and len(shards.shards) > 1:
            tracer = ShardTracer(source.family, source.spec, options.precision)
            graphs |= {shard.name: partial(tracer.graph, shard) for shard in shards.shards}
        else:
            graphs[name] = partial(whole, name)
    return graphs
