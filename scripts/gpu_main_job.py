#!/usr/bin/env python
"""The main job on a machine with an NVIDIA GPU, in one command; writes engines/evidence/<gpu>-main-job.json.

    .venv/bin/python scripts/gpu_main_job.py

Runs the tests marked `gpu`, exports the embedded default with both attention forms, and runs parity and latency of
every TensorRT that is installed. What fails is recorded, not hidden: the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from va_export.engine.tensorrt_api import available_flavors
from va_export.errors import VaExportError
from va_export.evidence.device import current_commit, describe_device, measure_ceilings
from va_export.evidence.document import begin_evidence, check_row, failures, write_evidence
from va_export.progress import StageDisplay
from va_export.proof import check_bundle

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]


def gpu_tests(folder: Path) -> list[Row]:
    """Run the tests marked `gpu`; one row each."""
    report = folder / "gpu-tests.xml"
    subprocess.run([sys.executable, "-m", "pytest", "-m", "gpu", f"--junitxml={report}", "-q"], cwd=ROOT, check=False)
    return rows_from_junit(report)


def rows_from_junit(report: Path) -> list[Row]:
    """pytest's JUnit report as check rows; a skipped test counts as not passed, for here nothing may be skipped."""
    rows: list[Row] = []
    for case in ElementTree.parse(report).iter("testcase"):
        trouble = [child for child in case if child.tag in ("failure", "error", "skipped")]
        message = trouble[0].get("message", "").splitlines()[0] if trouble else None
        rows.append(check_row(f"{case.get('classname')}::{case.get('name')}", not trouble, message=message or None))
    return rows


def bundle_rows(folder: Path, attention: str, target: str) -> tuple[list[Row], list[Row]]:
    """Export the embedded default and check it on every TensorRT here: check rows and timing rows."""
    bundle = folder / attention
    command = ["--model", "internvl2-tiny", "--fp16", "--attention", attention, "--target", target, "-o", str(bundle)]
    subprocess.run([sys.executable, "-c", "from va_export.cli.export import main; main()", *command], check=False)
    checks: list[Row] = []
    timings: list[Row] = []
    for flavor in available_flavors():
        try:
            document = check_bundle(bundle, flavor, StageDisplay(), iterations=50)
        except VaExportError as error:
            checks.append(check_row(f"bundle {attention} {flavor}", False, message=str(error)))
            continue
        for check in document["parity"]["runs"][0]["checks"]:
            name = f"bundle {attention} {flavor} {check['stage']} anchors={check['anchors']}: error over its bound"
            # parity.py bounds each number by itself; the worst of them, as a part of its bound, is what a row can hold.
            numbers = {"max_rel_err": check["tolerance_used"], "tolerance": 1.0}
            checks.append(check_row(name, check["passed"], dtype="float16", **numbers))
        timings += [row for run in document["latency"]["runs"] for row in stage_rows(run)]
    return checks, timings


def stage_rows(run: Row) -> list[Row]:
    """One run of latency.json as timing rows: one for each stage."""
    shape = {key: run[key] for key in ("backend", "attention", "anchors", "new_tokens")}
    return [
        {
            "op": f"bundle_{stage}",
            "shape": shape,
            "dtype": "float16",
            "ours_us": 1e3 * times["median_ms"],
            "ours_range_us": [1e3 * times["min_ms"], 1e3 * times["max_ms"]],
            "peers_us": {},
            "repeats": times["iterations"],
        }
        for stage, times in run["stages"].items()
    ]


def main() -> None:
    """Gather everything and write one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "engines" / "evidence")
    arguments = parser.parse_args()
    try:
        gpu = describe_device()
        evidence = begin_evidence(gpu, current_commit(ROOT), measure_ceilings())
    except VaExportError as error:
        raise SystemExit(f"error: {error}") from None
    with tempfile.TemporaryDirectory() as scratch:
        evidence["checks"] += gpu_tests(Path(scratch))
        for attention in ("plugin", "native"):
            target = "sm" + gpu["compute_capability"].replace(".", "")
            rows, times = bundle_rows(Path(scratch), attention, target)
            evidence["checks"] += rows
            evidence["timings"] += times
    path = write_evidence(evidence, arguments.output, "main-job")
    failed, total = failures(evidence), len(evidence["checks"])
    print(f"{path}: {total - len(failed)} of {total} passed")
    if failed or not total:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
