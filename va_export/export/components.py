"""Checkpoint → ONNX files, one component after another; what an earlier run finished is neither traced nor written
again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from va_export.bundle.decoder_shards import DECODER, is_decoder
from va_export.export.narrowing import Loss
from va_export.export.recipe import COMPONENTS
from va_export.export.weight_losses import unusable_weights

if TYPE_CHECKING:
    import onnx_ir as ir

    from va_export.bundle.write import BundleWriter
    from va_export.export.recipe import ExportOptions
    from va_export.export.shard_plan import ShardPlan
    from va_export.export.source import Source
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

    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    losses: dict[str, Loss] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)


def write_components(
    options: ExportOptions, source: Source, shards: ShardPlan, bundle: BundleWriter, display: StageDisplay
) -> WrittenComponents:
    """Trace every component and write its ONNX files.

    Raises:
        VaExportError: weights that are not finite or that the precision cannot hold, all of them in one message.
    """

    layers = {shard.name: [shard.first_layer, shard.stop_layer] for shard in shards.shards if len(shards.shards) > 1}
    written = WrittenComponents()
    for name, graph in _graphs(options, source, shards).items():
        with display.stage(f"export {name}") as stage:
            write_component(
                name,
                graph,
                ("", "native") if is_decoder(name) else ("",),
                options,
                source,
                bundle,
                written,
                stage,
                key=layers.get(name),
            )
        if name in layers:
            written.entries[name]["layers"] = layers[name]
    return written


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


def write_component(
    name: str,
    graph: Callable[[], ir.Model],
    forms: tuple[str, ...],
    options: ExportOptions,
    source: Source,
    bundle: BundleWriter,
    written: WrittenComponents,
    stage: Stage,
    key: Any = None,
) -> None:
    """Write one component, or what an earlier run left to do of it, and note it in `written`.

    Args:
        graph: gives the traced graph, passes run; not called if its files are there.
        forms: "" for the graph itself, "native" for the one without the custom op, over the same weights.
        key: plain data that tells apart graphs of one name.
    """
    from va_export.graph.stream_weights import Written, check_weights, stream_weights
    from va_export.graph.weight_layout import data_bytes

    files = {f"onnx_{form}" if form else "onnx": _file(name, form) for form in forms}
    data = f"{files['onnx']}.data"
    traced = _traced(name, key, list(files.values()), bundle)
    if traced is None:
        stage.say("tracing")
        traced = _trace(name, key, graph(), files, bundle)
    slots = traced.slots
    weight_map = source.family.weight_map(source.spec)
    marks = [record.mark for record in bundle.journal.of(Written, graph=traced.graph)]
    if marks and marks[-1].slots == len(slots) and bundle.is_finished(data):
        losses = {weight: loss for mark in marks for weight, loss in mark.losses.items()}
    else:
        stage.say("")
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
            found = check_weights(others, slots[0].torch_dtype, source.checkpoint, clip=options.clip_overflow)
            raise unusable_weights(
                streamed.unusable | found, weight_map, options.precision, source.checkpoint.directory
            )
        losses = streamed.losses
        bundle.finish(data, streamed.sha256)
    written.losses |= losses
    written.names |= {slot.name for slot in slots}
    written.entries[name] = files
    stage.say(f"{traced.nodes} nodes, {len(slots)} tensors")


def _file(name: str, form: str) -> str:
    return f"onnx/{name}_{form}.onnx" if form else f"onnx/{name}.onnx"


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
    if set(options.components) != set(COMPONENTS):
        return {}
    return {name: source for name, source in weight_map.items() if name not in done}


def write_score(options: ExportOptions, source: Source, bundle: BundleWriter, display: StageDisplay) -> dict[str, Any]:
    """Write SubspaceScore's graph with the recipe's settings, which has no weights; returns its manifest entry."""
    import onnx

    from va_export.graph.score import score_model
    from va_export.graph.write_onnx import check_onnx

    with display.stage("export score") as stage:
        relative = "onnx/score.onnx"
        tuned = options.recipe.limits.opt_frames * source.spec.vision.tokens_per_frame
        model = score_model(options.recipe.score, source.spec.text.hidden_size, tuned)
        onnx.save(model, bundle.path(relative))
        check_onnx(bundle.path(relative))
        stage.say(f"1 node, and {len(model.functions[0].node)} in its body")
    return {"onnx": relative}
