#!/usr/bin/env python
"""The engines of a bundle on a machine with an NVIDIA GPU; writes engines/evidence/<gpu>-engines.json.

    .venv/bin/python scripts/gpu_engines.py                  # the embedded default, exported here, both attention forms
    .venv/bin/python scripts/gpu_engines.py --bundle DIR     # a bundle that is there; one that was not exported on this
                                                             # machine needs VA_EXPORT_TRUST_PLUGINS=1 (SECURITY.md)

Runs the tests marked `gpu`, then parity and latency on every TensorRT that is installed (or lies in --wheels, whole or
in pieces). What refuses is recorded in its own words; then the plugin object is driven without TensorRT, and ONNX
Runtime's CUDA provider runs the bundle. The exit code is 1 where anything failed. --device cpu --output FOLDER tries
the script on ONNX Runtime's CPU provider; that is no evidence.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from va_export.errors import VaExportError
from va_export.evidence.bundle_checks import bundle_rows, checked_rows, onnxruntime_rows, plugin_object_rows, use_wheels
from va_export.evidence.device import current_commit, describe_cpu, describe_device, measure_ceilings
from va_export.evidence.document import Row, begin_evidence, check_row, failures, write_evidence
from va_export.evidence.workers import run_worker, write_rows

ROOT = Path(__file__).resolve().parent.parent
ATTENTIONS = ("plugin", "native")
PART_SECONDS = 500.0  # a part that hangs must not take the others' time


def test_rows(folder: Path) -> Iterator[tuple[str, Row]]:
    """Run the tests marked `gpu`; one row each."""
    report = folder / "gpu-tests.xml"
    subprocess.run([sys.executable, "-m", "pytest", "-m", "gpu", f"--junitxml={report}", "-q"], cwd=ROOT, check=False)
    yield from (("checks", row) for row in rows_from_junit(report))


def rows_from_junit(report: Path) -> list[Row]:
    """pytest's JUnit report as check rows; a skipped test counts as not passed, for here nothing may be skipped."""
    rows: list[Row] = []
    for case in ElementTree.parse(report).iter("testcase"):
        trouble = [child for child in case if child.tag in ("failure", "error", "skipped")]
        message = trouble[0].get("message", "").splitlines()[0] if trouble else None
        rows.append(check_row(f"{case.get('classname')}::{case.get('name')}", not trouble, message=message or None))
    return rows


def export(attention: str, bundle: Path, compute_capability: str | None) -> None:
    """Export the embedded default for this GPU; a refusal of the builder shows when the bundle is opened."""
    command = ["--model", "internvl2-tiny", "--fp16", "--attention", attention, "-o", str(bundle), "--overwrite"]
    target = [] if compute_capability is None else ["--target", "sm" + compute_capability.replace(".", "")]
    start = [sys.executable, "-c", "from va_export.cli.export import main; main()", *command]
    done = subprocess.run([*start, *target], capture_output=True, text=True, check=False)
    if done.returncode == 2 and target:
        print(done.stderr.strip(), file=sys.stderr)
        done = subprocess.run([*start, "--onnx-only"], capture_output=True, text=True, check=False)
    if not bundle.is_dir():
        raise VaExportError(f"the export failed: {done.stderr.strip()[-600:]}", where=str(bundle))


def work(arguments: argparse.Namespace) -> None:
    """In a worker: one part, its rows written as they come."""
    if arguments.wheels is not None:
        unpacked = arguments.rows.parent / "wheels"
        unpacked.mkdir(exist_ok=True)
        use_wheels(arguments.wheels, unpacked)
    label, bundle, capability = arguments.label, arguments.bundle, arguments.capability
    match arguments.worker:
        case "tests":
            rows = test_rows(arguments.rows.parent)
        case "engines":
            rows = bundle_rows(bundle, label)
        case "onnxruntime":
            rows = onnxruntime_rows(bundle, label)
        case "plugin":
            rows = plugin_object_rows(ROOT, ROOT / "build" / "gpu-check", capability)
        case _:
            rows = checked_rows(bundle, "onnxruntime", f"{label} onnxruntime", iterations=2)
    write_rows(arguments.rows, rows)


def gather(arguments: argparse.Namespace) -> Path:
    """Run every part, write the file; its path."""
    on_gpu = arguments.device == "cuda"
    device = describe_device() if on_gpu else describe_cpu()
    document = begin_evidence(device, current_commit(ROOT), measure_ceilings())
    capability = device.get("compute_capability")
    with tempfile.TemporaryDirectory() as scratch:

        def run(part: str, label: str = "", bundle: Path | None = None) -> None:
            rows = Path(scratch) / f"{part}-{label}.jsonl"
            command = [sys.executable, str(Path(__file__).resolve()), "--worker", part, "--rows", str(rows)]
            command += ["--label", label, "--capability", capability or ""]
            command += [] if bundle is None else ["--bundle", str(bundle)]
            command += [] if arguments.wheels is None else ["--wheels", str(arguments.wheels.resolve())]
            print(f"{part} {label} …", flush=True)
            run_worker(f"{part} {label}".strip(), command, rows, document, timeout_seconds=PART_SECONDS)

        bundles = {"bundle": arguments.bundle} if arguments.bundle else {}
        for attention in () if bundles else ATTENTIONS:
            name = f"bundle {attention}"
            bundles[name] = Path(scratch) / attention
            try:
                export(attention, bundles[name], capability)
            except VaExportError as error:
                document["checks"].append(check_row(f"{name}: exported", False, message=str(error)))
                del bundles[name]
        if on_gpu:
            run("tests")
        for label, bundle in bundles.items():
            run("engines" if on_gpu else "cpu", label, bundle)
        if on_gpu and not any(row["passed"] for row in document["checks"] if row["name"].startswith("bundle")):
            run("plugin")
            for label, bundle in bundles.items():
                run("onnxruntime", label, bundle)
    path = write_evidence(document, arguments.output, "engines")
    failed, total = failures(document), len(document["checks"])
    print(f"{path}: {total - len(failed)} of {total} passed, {len(document['timings'])} timings")
    for name in failed:
        print(f"FAILED {name}")
    if failed or not total:
        raise SystemExit(1)
    return path


def main() -> None:
    """Everything, or one part of it in a worker."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="a bundle to run instead of exporting the embedded default")
    parser.add_argument("--wheels", type=Path, help="a directory of TensorRT(-RTX) wheels, whole or NAME.whl.0, .1, …")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: ONNX Runtime, to try the script"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "engines" / "evidence")
    for hidden in ("--worker", "--label", "--capability"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        if arguments.worker:
            work(arguments)
        else:
            gather(arguments)
    except VaExportError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
