"""Reference, parity and latency of a bundle: the second half of an export, and what `va-check` repeats."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from va_export.errors import VaExportError
from va_export.host_memory import available_memory
from va_export.machine import environment, gpu_name
from va_export.proof.compare import check_parity, parity_document
from va_export.proof.latency import measure_latency
from va_export.proof.partition import UNDETERMINED
from va_export.proof.reference import FILE_NAME, Sample, read_reference
from va_export.runtime.bundle import Bundle
from va_export.settings import check_tolerances

if TYPE_CHECKING:
    from va_export.bundle.write import BundleWriter
    from va_export.export.build_engines import EnginePlan
    from va_export.export.recipe import ExportOptions
    from va_export.export.source import Source
    from va_export.progress import StageDisplay

# PyTorch holds the weights once, beside activations and the file pages that they are copied from.
_TORCH_FACTOR = 1.3


def prove(
    options: ExportOptions,
    source: Source,
    sample: Sample,
    bundle: BundleWriter,
    engines: EnginePlan,
    manifest: dict[str, Any],
    display: StageDisplay,
) -> bool:
    """Compute the reference, compare the bundle with it, and measure; returns whether parity passed."""
    from va_export.proof.reference import compute_reference, write_reference

    with display.stage("reference (PyTorch, float32)") as stage:
        arrays = compute_reference(
            source.family, source.spec, source.checkpoint, options.recipe, sample, options.new_tokens, stage.advance
        )
        write_reference(bundle.path(FILE_NAME), arrays)
        bundle.write_manifest(manifest)
        stage.say(f"{len(sample.frames)} frames, {sample.input_ids.shape[1]} prompt tokens")
    runs = _runs_here(options)
    parity = run_parity(bundle.directory, runs, arrays, options.atol, options.rtol, display)
    parity["not_run"] = not_run_here(engines)
    bundle.write_json("parity.json", parity)
    if options.latency_iterations and is_finite(parity):
        timed, left_out = _timed_here(options, bundle.directory)
        for reason in left_out:
            display.note(reason)
        latency = run_latency(bundle.directory, timed, arrays, options.latency_iterations, options.new_tokens, display)
        bundle.write_json("latency.json", latency)
    return bool(parity["passed"])


def is_finite(parity: Mapping[str, Any]) -> bool:
    """Whether every stage of every run gave numbers; a bundle that gives NaN is not worth timing."""
    checks = [check for run in parity["runs"] for check in run["checks"]]
    return not any(check["nan"] or check["inf"] for check in checks)


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


def not_run_here(engines: EnginePlan) -> list[dict[str, str]]:
    """What parity did not cover, why, and the command that covers it."""
    rows = []
    for flavor in engines.flavors:
        if gpu_name() is None:
            reason = "no NVIDIA GPU on the machine of the export"
        else:
            reason = "an export compares on ONNX Runtime only"
        rows.append({"what": f"{flavor} engines", "reason": reason, "command": f"va-check BUNDLE --backend {flavor}"})
    if engines.reason:
        rows.append(
            {
                "what": "TensorRT engines",
                "reason": f"not built: {engines.reason}",
                "command": "va-export … without --onnx-only",
            }
        )
    return rows


def run_parity(
    directory: Path,
    runs: list[tuple[str, str]],
    reference: Mapping[str, Any],
    atol: float | None,
    rtol: float | None,
    display: StageDisplay,
    devices: Sequence[int] | None = None,
) -> dict[str, Any]:
    """parity.json over the given (backend, attention form) pairs, `not_run` left empty."""
    results = []
    for backend, attention in runs:
        with (
            display.stage(f"parity {backend}/{attention}") as stage,
            Bundle.open(directory, backend, attention=attention, devices=devices, unfinished_too=True) as bundle,
        ):
            result = check_parity(bundle, reference, atol, rtol)
            results.append(result)
            failed = [check["stage"] for check in result["checks"] if not check["passed"]]
            is_open = any(check["partition"] == UNDETERMINED for check in result["checks"])
            stage.say(
                f"{len(result['checks'])} checks, "
                + (f"FAILED: {', '.join(failed)}" if failed else "all within tolerance")
                + ("; the frames leave the subspaces open" if is_open else "")
            )
            precision = bundle.manifest.data["precision"]
    return parity_document(precision, "PyTorch float32, Hugging Face classes, score in float64", results, [])


def run_latency(
    directory: Path,
    runs: list[tuple[str, str]],
    reference: Mapping[str, Any],
    iterations: int,
    new_tokens: int,
    display: StageDisplay,
    devices: Sequence[int] | None = None,
) -> dict[str, Any]:
    """latency.json over the given (backend, attention form) pairs, with anchors and without."""
    results = []
    for backend, attention in runs:
        with Bundle.open(directory, backend, attention=attention, devices=devices, unfinished_too=True) as bundle:
            for anchors in (True, False):
                with display.stage(f"latency {backend} {'anchored' if anchors else 'plain'}") as stage:
                    result = measure_latency(
                        bundle,
                        reference,
                        anchors=anchors,
                        iterations=iterations,
                        new_tokens=new_tokens,
                        on_step=stage.advance,
                    )
                    results.append(result)
                    median = result["stages"]["end_to_end"]["median_ms"]
                    stage.say(f"median {median:.1f} ms end to end, host time on {bundle.backend.device}")
    return {"environment": environment(), "runs": results}


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
) -> dict[str, Any]:
    """Repeat parity and latency of a bundle on this machine (`va-check`); needs neither PyTorch nor the checkpoint.

    Args:
        output: a directory for `parity.json` and `latency.json` of this run; the bundle itself is never changed.
        devices: as for `Bundle.open`.

    Raises:
        VaExportError: the bundle is damaged, has no reference, or the backend is not available; the output cannot be
            written or lies in the bundle.
    """
    check_tolerances(atol, rtol)
    if iterations < 0:
        raise VaExportError(
            f"at least 0 iterations are needed, not {iterations}", where="--latency-iterations", fix="raise it"
        )
    if output is not None and output.resolve().is_relative_to(directory.resolve()):
        raise VaExportError(
            "the results may not be written into the bundle, which stays as it is",
            where=output,
            fix="choose another --output",
        )
    with Bundle.open(directory, backend, check_hashes=True, devices=devices) as bundle:
        runs = [(backend, bundle.attention)]
    reference = read_reference(directory)
    new_tokens = len(reference["anchored_tokens"])
    parity = run_parity(directory, runs, reference, atol, rtol, display, devices)
    document: dict[str, Any] = {"parity": parity}
    if iterations and is_finite(parity):
        document["latency"] = run_latency(directory, runs, reference, iterations, new_tokens, display, devices)
    if output is not None:
        try:
            output.mkdir(parents=True, exist_ok=True)
            for name, content in document.items():
                text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
                (output / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise VaExportError(f"the results cannot be written: {error.strerror}", where=output) from error
    return document
