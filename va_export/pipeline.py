"""The recipe, read top to bottom: checkpoint → graphs → ONNX → engines → bundle → parity → latency → report.

Each step is one module with one public function, and leaves something on disk that a person can open.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from va_export.bundle.manifest import read_manifest
from va_export.bundle.trust import remember_own_code
from va_export.bundle.write import bundle_writer, check_destination
from va_export.checkpoint.hashes import hashing
from va_export.export.build_engines import build_engines, plan_engines
from va_export.export.components import write_components, write_score
from va_export.export.description import describe, write_settings
from va_export.export.fingerprint import continue_or_start
from va_export.export.plan import Plan, check_plan, plan_export
from va_export.export.recipe import SCORE, ExportOptions
from va_export.export.shard_plan import keep_shards, plan_shards
from va_export.export.source import open_source, open_spec
from va_export.export.weight_losses import loss_note
from va_export.progress import StageDisplay
from va_export.proof.run import prove
from va_export.proof.sample import make_sample
from va_export.report.html import render_report


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
        bundle_writer(options.output, overwrite=options.overwrite, resume=options.resume) as bundle,
    ):
        with display.stage("open checkpoint") as stage:
            source = open_source(options, Path(scratch))
            engines = plan_engines(options, source.spec, display)
            weight_map = source.family.weight_map(source.spec)
            shards = plan_shards(options, source.spec, weight_map, builds_engines=bool(engines.flavors))
            check_plan(plan_export(options, source.spec, weight_map, engines.flavors, shards), bundle.output)
            stage.say(f"{source.family.name}, {source.spec.text.num_layers} layers, from {source.checkpoint.directory}")
        continue_or_start(options, source, bundle, display)
        shards = keep_shards(options, source.spec, weight_map, shards, bundle.journal)
        write_settings(options, source, bundle)
        sample = None
        if options.proves:  # read now: a wrong video should not be found out after everything else
            with display.stage("read video") as stage:
                processing = source.family.processing(source.spec, source.checkpoint)
                sample = make_sample(options, processing, source.spec, bundle.directory)
                stage.say(f"{options.recipe.frames} frames of {sample.clip['file']}")
        with hashing(source.checkpoint, bundle.journal) as hashes:
            written = write_components(options, source, shards, bundle, display)
            if note := loss_note(written.losses, options.precision):
                display.note(note)
            if options.exports_score:
                written.entries[SCORE] = write_score(options, source, bundle, display)
            engine_entries = build_engines(options, engines, written.entries, source.spec, bundle, display)
            with display.stage("hash checkpoint") as stage:
                checkpoint_files = hashes.wait(stage)
        manifest = describe(options, source, shards, written, checkpoint_files, engine_entries, engines)
        bundle.write_manifest(manifest)
        passed = None
        if sample is not None:
            manifest["video"] = sample.clip
            passed = prove(options, source, sample, bundle, engines, manifest, display)
        with display.stage("report"):
            bundle.write_manifest({**manifest, "parity": {"passed": passed}})
            render_report(bundle.directory)
        with display.stage("seal bundle") as stage:
            bundle.write_manifest({**manifest, "parity": {"passed": passed}}, finished=True)
            sealed = read_manifest(bundle.directory)
            directory = bundle.commit(passed is not False)
            remember_own_code(sealed, directory)
            stage.say(str(directory))
    return ExportResult(directory, passed)


def plan(options: ExportOptions, display: StageDisplay) -> Plan:
    """What `export` would write, from the checkpoint's headers alone (`--dry-run`).

    Raises:
        VaExportError: as `export` would at its start.
    """
    check_destination(options.output, options.overwrite)
    with tempfile.TemporaryDirectory(prefix="va-export-") as scratch:
        family, spec = open_spec(options, Path(scratch))
        flavors = plan_engines(options, spec, display).flavors
        weight_map = family.weight_map(spec)
        shards = plan_shards(options, spec, weight_map, builds_engines=bool(flavors))
        return plan_export(options, spec, weight_map, flavors, shards)
