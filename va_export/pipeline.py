"""The recipe, read top to bottom: checkpoint → graphs → ONNX → engines → bundle → parity → latency → report.

Each step is one module with one public function, and leaves something on disk that a person can open.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

from va_export.bundle.manifest import read_manifest
from va_export.bundle.trust import remember_own_code
from va_export.bundle.write import bundle_writer, check_destination
from va_export.checkpoint.hashes import hashing
from va_export.export.build_engines import build_engines, plan_engines
from va_export.export.components import list_components, write_components
from va_export.export.description import describe_bundle, write_settings
from va_export.export.fingerprint import continue_or_start
from va_export.export.plan import Plan, check_plan, plan_export
from va_export.export.recipe import ExportOptions
from va_export.export.shard_plan import keep_shards, plan_shards
from va_export.export.source import open_model, open_source
from va_export.export.weight_losses import loss_note
from va_export.progress import StageDisplay
from va_export.proof.documents import Parity
from va_export.proof.run import prove
from va_export.proof.sample import make_sample
from va_export.proof.verdict import verdict
from va_export.report.html import render_report


@dataclass(frozen=True)
class ExportResult:
    """A bundle and what is known of it.

    Attributes:
        directory: where it lies.
        parity: parity.json; None when it was not run (not all components, or nothing to run them on).
    """

    directory: Path
    parity: Parity | None

    @property
    def passed(self) -> bool | None:
        """Whether it agrees with the reference; None when that is not known."""
        return None if self.parity is None else self.parity.passed

    @property
    def verdict(self) -> str:
        """The same in words, and what ran for it."""
        return verdict(self.parity)


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
            source = open_source(options, Path(scratch), display.note)
            engines = plan_engines(options, source, display)
            shards = plan_shards(options, source, builds_engines=bool(engines.flavors))
            check_plan(plan_export(options, source, engines.flavors, shards), bundle.output)
            stage.say(f"{source.family.name}, {source.spec.text.num_layers} layers, from {source.checkpoint.directory}")
        continue_or_start(options, source, bundle, display)
        shards = keep_shards(shards, source.spec.text.num_layers, bundle.journal)
        write_settings(options, source, bundle)
        sample = None
        if options.proves:  # read now: a wrong video should not be found out after everything else
            with display.stage("read video") as stage:
                sample = make_sample(options, source, bundle.directory)
                stage.say(f"{sample.clip['frames']} frames of {sample.clip['file']}")
            for note in sample.clip["notes"]:
                display.note(f"Video: {note}.")
        with hashing(source.checkpoint, bundle.journal) as hashes:
            components = list_components(options, source, shards)
            written = write_components(options, source, components, bundle, display)
            if note := loss_note(written.losses, options.precision):
                display.note(note)
            build_engines(options, engines, components, written, bundle, display)
            with display.stage("hash checkpoint") as stage:
                checkpoint_files = hashes.wait(stage)
        video = sample.clip if sample else None
        document = describe_bundle(options, source, shards, written, checkpoint_files, engines, video)
        parity = None if sample is None else prove(options, source, sample, bundle, engines, document, display)
        result = ExportResult(bundle.output, parity)
        document = msgspec.structs.replace(document, parity={"passed": result.passed, "verdict": result.verdict})
        with display.stage("report"):
            render_report(bundle.directory, bundle.manifest(document).data)
        with display.stage("seal bundle") as stage:
            bundle.seal(document)
            sealed = read_manifest(bundle.directory)
            directory = bundle.commit(result.passed is not False)
            remember_own_code(sealed, directory)
            stage.say(str(directory))
    return ExportResult(directory, parity)


def plan(options: ExportOptions, display: StageDisplay) -> Plan:
    """What `export` would write, from the checkpoint's headers alone (`--dry-run`).

    Raises:
        VaExportError: as `export` would at its start.
    """
    check_destination(options.output, options.overwrite)
    with tempfile.TemporaryDirectory(prefix="va-export-") as scratch:
        model = open_model(options, Path(scratch), display.note)
        flavors = plan_engines(options, model, display).flavors
        shards = plan_shards(options, model, builds_engines=bool(flavors))
        return plan_export(options, model, flavors, shards)
