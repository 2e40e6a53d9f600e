"""Checkpoint → ONNX files, one component after another; what an earlier run finished is neither traced nor written
again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from va_export.bundle.document import ComponentEntry
from va_export.export.narrowing import Loss
from va_export.export.plan import human
from va_export.export.weight_losses import unusable_weights
from va_export.models.component import ROLES, Component, score_component

if TYPE_CHECKING:
    import onnx_ir as ir

    from va_export.bundle.write import BundleWriter
    from va_export.export.recipe import ExportOptions
    from va_export.export.shard_plan import ShardPlan
    from va_export.export.source import Model, Source
    from va_export.graph.weight_layout import Traced
    from va_export.models.family import WeightSource
    from va_export.progress import Stage, StageDisplay


@dataclass
class WrittenComponents:
    """The ONNX files of a bundle.

    Attributes:
        entries: the manifest's `components`.
        losses: weights that lost something to the precision, by name.
        names: of all weights so far.
    """

    entries: dict[str, ComponentEntry] = field(default_factory=dict)
    losses: dict[str, Loss] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)


def list_components(options: ExportOptions, model: Model, shards: ShardPlan) -> list[Component]:
    """What a run exports, in the order in which it is written."""
    parts = model.family.components(model.spec, options.precision, shards.shards)
    listed = [part for part in parts if part.role in options.components]
    return (
        [*listed, score_component(model.spec, model.visual_tokens, options.recipe.score)]
        if options.exports_score
        else listed
    )


def write_components(
    options: ExportOptions, source: Source, components: list[Component], bundle: BundleWriter, display: StageDisplay
) -> WrittenComponents:
    """Trace every component and write its ONNX files.

    Raises:
        VaExportError: weights that are not finite or that the precision cannot hold, all of them in one message.
    """
    written = WrittenComponents()
    for component, graph in _graphs(options, source, components):
        with display.stage(f"export {component.name}") as stage:
            if component.build is None:
                _write_score(component, options, source, bundle, written, stage)
            else:
                write_component(component, graph, options, source, bundle, written, stage)
    return written


def _graphs(
    options: ExportOptions, source: Source, components: list[Component]
) -> Iterator[tuple[Component, Callable[[], ir.Model]]]:
    """Each component with what makes its graph, passes run and without weights. The model is built when the first is
    asked for; of several shards those of one shape share a trace."""

    @cache
    def model() -> Any:
        from va_export.graph.trace import FakeModel

        return FakeModel(source.family, source.spec, options.precision)

    @cache
    def shards() -> Any:
        from va_export.graph.shards import ShardTracer

        return ShardTracer(model(), source.weight_map)

    def traced(component: Component) -> ir.Model:
        from va_export.passes import run_passes

        return shards().graph(component) if component.shard else run_passes(model().trace(component))

    for component in components:
        yield component, partial(traced, component)


def write_component(
    component: Component,
    graph: Callable[[], ir.Model],
    options: ExportOptions,
    source: Source,
    bundle: BundleWriter,
    written: WrittenComponents,
    stage: Stage,
) -> None:
    """Write one component, or what an earlier run left to do of it, and note it in `written`. Where there is a custom
    op there are two forms over the same weights: the graph itself, and the one without the op.

    Args:
        graph: gives the traced graph, passes run; not called if its files are there.
    """
    from va_export.graph.stream_weights import Written, find_unusable, stream_weights
    from va_export.graph.weight_layout import data_bytes

    name, shard = component.name, component.shard
    files = {"onnx": _file(name), **({"onnx_native": _file(f"{name}_native")} if component.has_native_form else {})}
    layers = None if shard is None or shard.is_whole else (shard.first_layer, shard.stop_layer)
    key = list(layers) if layers else None  # tells apart graphs of one name
    data = f"{files['onnx']}.data"
    traced = _traced(name, key, list(files.values()), bundle)
    if traced is None:
        stage.say("tracing")
        traced = _trace(name, key, graph(), files, bundle)
    slots = traced.slots
    weights = f"{len(slots)} tensors"
    weight_map = source.weight_map
    marks = [record.mark for record in bundle.journal.of(Written, graph=traced.graph)]
    if marks and marks[-1].slots == len(slots) and bundle.is_finished(data):
        losses = {weight: loss for mark in marks for weight, loss in mark.losses.items()}
    else:
        stage.say("")
        start = time.perf_counter()
        streamed = stream_weights(
            bundle.path(data),
            slots,
            weight_map,
            source.checkpoint,
            clip=options.clip_overflow,
            marks=marks,
            on_mark=lambda mark: bundle.journal.append(Written(traced.graph, mark)),
            on_bytes=stage.byte_counter(data_bytes(slots)),
        )
        if streamed.unusable:
            bundle.abandon()
            others = _others(options, weight_map, written.names | {slot.name for slot in slots})
            found = find_unusable(others, slots[0].torch_dtype, source.checkpoint, clip=options.clip_overflow)
            raise unusable_weights(
                streamed.unusable | found, weight_map, options.precision, source.checkpoint.directory
            )
        losses = streamed.losses
        bundle.finish(data, streamed.sha256)
        rate = data_bytes(slots) / (time.perf_counter() - start)
        weights = f"{weights}, {human(data_bytes(slots))} at {human(rate)}/s"
    written.losses |= losses
    written.names |= {slot.name for slot in slots}
    written.entries[name] = _entry(component, options, layers=layers, **files)
    stage.say(f"{traced.nodes} nodes, {weights}")


def _file(name: str) -> str:
    return f"onnx/{name}.onnx"


def _entry(component: Component, options: ExportOptions, **files: Any) -> ComponentEntry:
    return ComponentEntry(
        role=component.role,
        inputs=component.inputs,
        outputs=component.outputs,
        ranges=component.ranges(options.recipe.limits),
        **files,
    )


def _traced(name: str, key: Any, files: list[str], bundle: BundleWriter) -> Traced | None:
    """The journal's record of a graph whose files are there."""
    from va_export.graph.weight_layout import Traced

    records = bundle.journal.of(Traced, name=name, key=key)
    if not records or not all(bundle.is_finished(file) for file in files):
        return None
    return records[-1] if bundle.path(f"{files[0]}.data").is_file() else None


def _trace(name: str, key: Any, model: ir.Model, files: Mapping[str, str], bundle: BundleWriter) -> Traced:
    """Write a graph in its forms, and a data file of the right size for its weights."""
    from va_export.bundle.manifest import sha256
    from va_export.graph.native import write_native_form
    from va_export.graph.weight_layout import Traced, data_bytes, layout_weights
    from va_export.graph.write_onnx import check_onnx, reserve, write_graph

    slots = layout_weights(model)
    path, data = bundle.path(files["onnx"]), f"{files['onnx']}.data"
    reserve(bundle.path(data), data_bytes(slots))
    write_graph(model, path, slots)
    if "onnx_native" in files:
        write_native_form(path, bundle.path(files["onnx_native"]))
    digests = {file: sha256(bundle.path(file)) for file in files.values()}
    for file in files.values():
        check_onnx(bundle.path(file))
    for file, digest in digests.items():
        bundle.finish(file, digest)
    bundle.vouch(data)
    nodes = sum(1 for _ in model.graph)
    graph = digests[files["onnx"]]  # marks are of this graph's layout, and of no other that had its name
    traced = Traced(name, graph, nodes, slots, key)
    bundle.journal.append(traced)
    return traced


def _others(options: ExportOptions, weight_map: Mapping[str, WeightSource], done: set[str]) -> dict[str, WeightSource]:
    """The weights that nothing has read yet, if the whole model is exported; which of them the rest of a part has, only
    its graphs would tell."""
    if set(options.components) != set(ROLES):
        return {}
    return {name: source for name, source in weight_map.items() if name not in done}


def _write_score(
    component: Component,
    options: ExportOptions,
    source: Source,
    bundle: BundleWriter,
    written: WrittenComponents,
    stage: Stage,
) -> None:
    """Write SubspaceScore's graph with the recipe's settings, which has no weights."""
    import onnx

    from va_export.graph.score import score_model
    from va_export.graph.write_onnx import check_onnx

    relative = _file(component.name)
    tuned = source.visual_tokens(options.recipe.limits.opt_frames)
    model = score_model(component, options.recipe.score, tuned)
    onnx.save(model, bundle.path(relative))
    check_onnx(bundle.path(relative))
    written.entries[component.name] = _entry(component, options, onnx=relative)
    stage.say(f"1 node, and {len(model.functions[0].node)} in its body")
