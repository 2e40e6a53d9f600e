"""The recipe, read top to bottom: checkpoint → graphs → ONNX → engines → bundle → parity → latency → report.

Each step is one module with one public function, and leaves something on disk that a person can open.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from va_export.bundle.manifest import read_manifest
from va_export.bundle.write import BundleWriter, bundle_writer, check_destination
from va_export.checkpoint import Checkpoint, download
from va_export.engines import EnginePlan, build_engines, plan_engines
from va_export.models import family_for, family_named
from va_export.plan import Plan, check_plan, plan_export
from va_export.progress import StageDisplay
from va_export.proof import prove
from va_export.recipe import ExportOptions, Recipe
from va_export.sample import make_sample

if TYPE_CHECKING:
    from va_export.models.family import ModelFamily, ModelSpec


@dataclass(frozen=True)
class Source:
    """An opened checkpoint and what it is."""

    checkpoint: Checkpoint
    family: ModelFamily
    spec: ModelSpec


@dataclass(frozen=True)
class ExportResult:
    """Where the bundle lies; `passed` is None when parity was not run (not all components, or nothing to run them
    on)."""

    directory: Path
    passed: bool | None


def export(options: ExportOptions, display: StageDisplay) -> ExportResult:
    """Make a bundle.

    Raises:
        VaExportError: anything that the user can mend. Nothing is left at `options.output` then, and what was there
        stays.
    """
    with (
        tempfile.TemporaryDirectory(prefix="va-export-") as scratch,
        bundle_writer(options.output, overwrite=options.overwrite) as bundle,
    ):
        with display.stage("open checkpoint") as stage:
            source = open_source(options, Path(scratch))
            engines = plan_engines(options, source.spec, display)
            check_plan(
                plan_export(options, source.spec, source.family.weight_map(source.spec), engines.flavors), bundle.output
            )
            stage.say(f"{source.family.name}, {source.spec.text.num_layers} layers, from {source.checkpoint.directory}")
        write_settings(options, source, bundle)
        sample = None
        if options.runs_whole_model:  # read now: a wrong video should not be found out after everything else
            with display.stage("read video") as stage:
                processing = source.family.processing(source.spec, source.checkpoint)
                sample = make_sample(options, processing, source.spec, bundle.directory)
                stage.say(f"{options.recipe.frames} frames of {sample.clip['file']}")
        components = write_components(options, source, bundle, display)
        engine_entries = build_engines(options, engines, components, source.spec, bundle, display)
        manifest = describe(options, source, components, engine_entries, engines)
        bundle.write_manifest(manifest)
        passed = None
        if sample is not None:
            manifest["video"] = sample.clip
            passed = prove(options, source, sample, bundle, engines, manifest, display)
        with display.stage("seal bundle") as stage:
            bundle.write_manifest({**manifest, "parity": {"passed": passed}})
            read_manifest(bundle.directory)
            directory = bundle.commit(passed is not False)
            stage.say(str(directory))
    return ExportResult(directory, passed)


def plan(options: ExportOptions, display: StageDisplay) -> Plan:
    """What `export` would write, from the checkpoint's headers alone (`--dry-run`).

    Raises:
        VaExportError: as `export` would at its start.
    """
    check_destination(options.output, options.overwrite)
    with tempfile.TemporaryDirectory(prefix="va-export-") as scratch:
        source = open_source(options, Path(scratch))
        flavors = plan_engines(options, source.spec, display).flavors
        return plan_export(options, source.spec, source.family.weight_map(source.spec), flavors)


def open_source(options: ExportOptions, scratch: Path) -> Source:
    """Open the checkpoint that the recipe names (making or downloading it first) and check all of its tensors'
    headers."""
    recipe = options.recipe
    checkpoint = Checkpoint.open(_checkpoint_directory(recipe, scratch))
    family = family_for(checkpoint.config)
    spec = family.spec_from_checkpoint(checkpoint, options.num_decoder_layers, options.image_token_id)
    family.check_weights(spec, checkpoint)
    return Source(checkpoint, family, spec)


def _checkpoint_directory(recipe: Recipe, scratch: Path) -> Path:
    if recipe.random_weights:
        return family_named(recipe.random_weights).write_tiny_checkpoint(scratch / recipe.name, recipe.seed)
    local = Path(recipe.checkpoint).expanduser()
    return local if local.is_dir() else download(recipe.checkpoint, recipe.revision)


def write_components(
    options: ExportOptions, source: Source, bundle: BundleWriter, display: StageDisplay
) -> dict[str, dict[str, Any]]:
    """Trace every component and write its ONNX files; returns the manifest's `components`."""
    from va_export.graph.native import write_native_form
    from va_export.graph.trace import trace_component
    from va_export.graph.write_onnx import check_onnx, write_onnx
    from va_export.passes import run_passes

    weight_map = source.family.weight_map(source.spec)
    entries: dict[str, dict[str, Any]] = {}
    for name in options.components:
        with display.stage(f"export {name}") as stage:
            model = run_passes(trace_component(name, source.family, source.spec, options.precision))
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
            if name == "decoder":
                write_native_form(path, bundle.path("onnx/decoder_native.onnx"))
                entries[name]["onnx_native"] = "onnx/decoder_native.onnx"
            for relative in entries[name].values():
                check_onnx(bundle.path(relative))
            stage.say(f"{sum(1 for _ in model.graph)} nodes, {n_weights} tensors")
    return entries


def write_settings(options: ExportOptions, source: Source, bundle: BundleWriter) -> None:
    """Write what the host needs besides the components: processing, generation, tokenizer, configuration, plugin."""
    processing = source.family.processing(source.spec, source.checkpoint)
    bundle.path("processing.json").write_text(processing.to_json() + "\n", encoding="utf-8")
    bundle.write_json(
        "generation.json",
        {"stop_token_ids": list(processing.stop_token_ids), "frames": options.recipe.frames, "sampling": "greedy"},
    )
    source.family.write_tokenizer(source.checkpoint, bundle.directory)
    shutil.copyfile(source.checkpoint.directory / "config.json", bundle.path("config.json"))


def describe(
    options: ExportOptions,
    source: Source,
    components: dict[str, dict[str, Any]],
    engine_entries: dict[str, dict[str, Any]],
    engines: EnginePlan,
) -> dict[str, Any]:
    """The manifest without its files."""
    from va_export.graph.trace import OPSET
    from va_export.ops.declaration import OP_VERSIONS
    from va_export.report.latency import library_versions

    recipe, spec = options.recipe, source.spec
    return {
        "model": {
            "name": recipe.name,
            "source": f"random weights, seed {recipe.seed}" if recipe.random_weights else recipe.checkpoint,
            "revision": recipe.revision,
            "family": source.family.name,
            "weights": "random" if recipe.random_weights else "checkpoint",
            "text": asdict(spec.text),
            "vision": asdict(spec.vision),
            "image_token_id": spec.image_token_id,
        },
        "precision": options.precision,
        "attention": options.attention,
        "opset": OPSET,
        "ops": dict(OP_VERSIONS),
        "libraries": library_versions(),
        "components": {
            name: {**entry, **({"engines": engine_entries[name]} if name in engine_entries else {})}
            for name, entry in components.items()
        },
        # The score runs on the host between vision and decoder; an engine of its own would be listed as a component.
        "scoring": "host",
        "limits": recipe.limits.to_mapping(),
        "gains": recipe.gains.to_mapping(),
        "score": recipe.score.to_mapping(),
        "plugin": engines.plugin_entry(),
        "tokenizer": "tokenizer.json" if source.checkpoint.has_tokenizer else None,
    }
