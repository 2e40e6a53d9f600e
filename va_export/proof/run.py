"""Reference, parity and latency of a bundle: the second half of an export, and what `va-check` repeats."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from va_export.bundle.manifest import read_manifest, verify_hashes
from va_export.bundle.trust import judge_code
from va_export.documents import encode
from va_export.errors import VaExportError
from va_export.host_memory import available_memory
from va_export.machine import environment, gpu_name
from va_export.proof.compare import check_parity, parity_document
from va_export.proof.documents import Environment, Latency, LatencyRun, NotRun, Parity, ParityRun
from va_export.proof.latency import measure_latency
from va_export.proof.partition import UNDETERMINED
from va_export.proof.reference import FILE_NAME, read_reference
from va_export.proof.verdict import NOT_BUILT, engines_not_run
from va_export.runtime.backends.table import open_backend, precision_advice
from va_export.runtime.bundle import Bundle
from va_export.settings import check_tolerances

if TYPE_CHECKING:
    from va_export.bundle.document import ManifestDocument
    from va_export.bundle.write import BundleWriter
    from va_export.export.build_engines import EnginePlan
    from va_export.export.recipe import ExportOptions
    from va_export.export.source import Source
    from va_export.progress import StageDisplay
    from va_export.proof.sample import Sample

REFERENCE = "PyTorch float32, Hugging Face classes, score in float64"
# PyTorch holds the weights once, beside activations and the file pages that they are copied from.
_TORCH_FACTOR = 1.3


def prove(
    options: ExportOptions,
    source: Source,
    sample: Sample,
    writer: BundleWriter,
    engines: EnginePlan,
    document: ManifestDocument,
    display: StageDisplay,
) -> Parity:
    """Compute the reference, compare the bundle with it, and measure; returns parity.json."""
    from va_export.proof.reference import compute_reference, write_reference

    with display.stage("reference (PyTorch, float32)") as stage:
        reference = compute_reference(source, options.recipe, sample, options.new_tokens, stage.advance)
        write_reference(writer.path(FILE_NAME), reference)
        stage.say(f"{len(sample.frames)} frames, {sample.prepared.length} prompt tokens")
    manifest = writer.manifest(document)
    timed, left_out = _timed_here(options, writer.directory)
    parity_runs: list[ParityRun] = []
    latency_runs: list[LatencyRun] = []
    for backend, attention in dict.fromkeys([*_runs_here(options), *timed]):
        with Bundle(manifest, open_backend(backend, manifest, attention), attention) as bundle:
            if (backend, attention) in _runs_here(options):
                parity_runs.append(run_parity(bundle, reference, options.atol, options.rtol, display))
            if (backend, attention) in timed and options.latency_iterations and _are_finite(parity_runs):
                latency_runs += run_latency(bundle, reference, options.latency_iterations, options.new_tokens, display)
    parity = parity_document(options.precision, REFERENCE, parity_runs, not_run_here(engines))
    writer.write_json("parity.json", parity)
    if latency_runs:
        for reason in left_out:
            display.note(reason)
        writer.write_json("latency.json", Latency(Environment(**environment()), tuple(latency_runs)))
    return parity


def _are_finite(runs: Sequence[ParityRun]) -> bool:
    """Whether every run gave numbers; a bundle that gives NaN is not worth timing."""
    return all(run.is_finite for run in runs)


def _runs_here(options: ExportOptions) -> list[tuple[str, str]]:
    """(backend, attention form) pairs that any machine can run: ONNX Runtime with both forms of the decoder. Its CPU
    provider has no bfloat16, so PyTorch runs that, from the bundle's own weights.
    """
    if options.precision == "bf16":
        return [("torch", options.attention)]
    other = {"plugin": "native", "native": "plugin"}[options.attention]
    return [("onnxruntime", options.attention), ("onnxruntime", other)]


def _timed_here(options: ExportOptions, directory: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """The pairs that are timed: ONNX Runtime with the exported form, and PyTorch beside it for scale where its weights,
    which it holds whole, fit; and what was left out, in words."""
    torch = ("torch", options.attention)
    if options.precision == "bf16":
        return [torch], []
    weights = sum(path.stat().st_size for path in directory.glob("onnx/*.data"))
    available = available_memory()
    if _TORCH_FACTOR * weights > available:
        reason = f"PyTorch is not timed: its {weights / 1e9:.1f} GB of weights do not fit the memory that is left"
        return [("onnxruntime", options.attention)], [reason]
    return [("onnxruntime", options.attention), torch], []


def not_run_here(engines: EnginePlan) -> list[NotRun]:
    """What parity did not cover, why, and the command that covers it."""
    no_gpu = gpu_name() is None
    reason = "no NVIDIA GPU on the machine of the export" if no_gpu else "an export compares on ONNX Runtime only"
    rows = engines_not_run(engines.flavors, reason)
    if engines.reason:
        rows.append(NotRun("TensorRT engines", f"{NOT_BUILT}{engines.reason}", "va-export … without --onnx-only"))
    return rows


def run_parity(
    bundle: Bundle, reference: Mapping[str, Any], atol: float | None, rtol: float | None, display: StageDisplay
) -> ParityRun:
    """One entry of `runs` in parity.json."""
    with display.stage(f"parity {bundle.backend.name}/{bundle.attention}") as stage:
        result = check_parity(bundle, reference, atol, rtol)
        failed = [check.stage for check in result.checks if not check.passed]
        outcome = f"FAILED: {', '.join(failed)}" if failed else "all within tolerance"
        is_open = any(check.partition == UNDETERMINED for check in result.checks)
        stage.say(
            f"{len(result.checks)} checks, {outcome}" + ("; the frames leave the subspaces open" if is_open else "")
        )
    return result


def run_latency(
    bundle: Bundle, reference: Mapping[str, Any], iterations: int, new_tokens: int, display: StageDisplay
) -> list[LatencyRun]:
    """Two entries of `runs` in latency.json: with anchors and without."""
    results = []
    for anchors in (True, False):
        with display.stage(f"latency {bundle.backend.name} {'anchored' if anchors else 'plain'}") as stage:
            result = measure_latency(
                bundle, reference, anchors=anchors, iterations=iterations, new_tokens=new_tokens, on_step=stage.advance
            )
            results.append(result)
            median = result.stages["end_to_end"].median_ms
            stage.say(f"median {median:.1f} ms end to end, host time on {bundle.backend.device}")
    return results


@dataclass(frozen=True)
class Proof:
    """What `va-check` found; no latency where none was asked for, or the numbers are none."""

    parity: Parity
    latency: Latency | None


def check_bundle(
    directory: Path,
    backend: str,
    display: StageDisplay,
    *,
    atol: float | None = None,
    rtol: float | None = None,
    iterations: int = 10,
    output: Path | None = None,
    devices: Sequence[int] | None = None,
    trust_plugins: bool = False,
) -> Proof:
    """Repeat parity and latency of a bundle on this machine (`va-check`); needs neither PyTorch nor the checkpoint.

    Args:
        output: a directory for `parity.json` and `latency.json` of this run; the bundle itself is never changed.
        devices, trust_plugins: as for `Bundle.open`.

    Raises:
        VaExportError: the bundle is damaged, has no reference, or the backend is not available; the output cannot be
            written or lies in the bundle.
    """
    check_tolerances(atol, rtol)
    if iterations < 0:
        raise VaExportError(
            f"at least 0 iterations are needed, not {iterations}", where="--latency-iterations", fix="raise it"
        )
    if output is not None:
        _check_results_directory(output, directory)
    manifest = read_manifest(directory)  # all that follows is of this one bundle, also if another takes its place
    verify_hashes(manifest)
    codes = judge_code(manifest, backend, trust_plugins)
    for code in codes:
        display.note(f"executed: {code}")
    if not codes:
        display.note("executed: nothing of the bundle; its graphs and weights are data")
    with Bundle.open(manifest, backend, devices=devices, trust_plugins=trust_plugins) as bundle:
        if advice := precision_advice(bundle.backend, manifest.data.precision):
            display.note(advice)
        for line in bundle.backend.kernels:
            display.note(line)
        reference = read_reference(manifest)
        runs = [run_parity(bundle, reference, atol, rtol, display)]
        components = bundle.manifest.data.components.values()
        others = sorted({flavor for component in components for flavor in component.engines} - {backend})
        left_out = engines_not_run(others, f"the check was of {backend}")
        parity = parity_document(bundle.manifest.data.precision, REFERENCE, runs, left_out)
        latency = None
        if iterations and _are_finite(runs):
            timed = run_latency(bundle, reference, iterations, len(reference["anchored_tokens"]), display)
            latency = Latency(Environment(**environment()), tuple(timed))
    manifest.held.check_open()  # stages were run one by one, without the checks of a whole answer
    if output is not None:
        try:
            output.mkdir(parents=True, exist_ok=True)
            for name, document in (("parity", parity), ("latency", latency)):
                if document is not None:
                    (output / f"{name}.json").write_bytes(encode(document))
        except OSError as error:
            raise VaExportError(
                f"the results cannot be written: {error.strerror}", where=output, fix="choose another --output"
            ) from error
    return Proof(parity, latency)


def _check_results_directory(output: Path, bundle: Path) -> None:
    """Refuse, before anything is run, a place where results cannot be written."""
    place = output.resolve()
    if place.is_relative_to(bundle.resolve()):
        raise VaExportError(
            "the results may not be written into the bundle, which stays as it is",
            where=output,
            fix="choose another --output",
        )
    nearest = next(folder for folder in (place, *place.parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        reason = "may not be written" if nearest.is_dir() else "is a file"
        raise VaExportError(
            f"the results cannot be written: {nearest} {reason}", where=output, fix="choose another --output"
        )
