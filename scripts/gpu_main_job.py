#!/usr/bin/env python
"""The main job on a machine with an NVIDIA GPU, in one command; writes engines/evidence/<gpu>-main-job.json.

    .venv/bin/python scripts/gpu_main_job.py

Runs the tests marked `gpu`, exports the embedded default with both attention forms, and runs parity and latency of
every TensorRT that is installed. What fails is recorded, not hidden: the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from va_export.engine.tensorrt_api import available_flavors
from va_export.errors import VaExportError
from va_export.progress import StageDisplay
from va_export.proof import check_bundle
from va_export.report.latency import environment

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]


def device() -> dict[str, Any]:
    """Name, driver and memory of the first GPU, and the libraries.

    Raises:
        VaExportError: there is no GPU.
    """
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader"]
    try:
        line = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise VaExportError(
            "no NVIDIA GPU answers here",
            where="nvidia-smi",
            fix="run this on a machine with a GPU; everything that needs none is in scripts/test.sh",
        ) from error
    name, driver, memory, capability = (part.strip() for part in line.split(","))
    return {"name": name, "driver": driver, "memory": memory, "compute_capability": capability, **environment()}


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
        rows.append({"name": f"{case.get('classname')}::{case.get('name')}", "passed": not trouble, "message": message})
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
            checks.append({"name": f"bundle {attention} {flavor}", "passed": False, "message": str(error)})
            continue
        checks += [
            {
                "name": f"bundle {attention} {flavor} {check['stage']} anchors={check['anchors']}",
                "dtype": "float16",
                "max_rel_err": check["max_rel"],
                "tolerance": check["tolerance"],
                "passed": check["passed"],
            }
            for check in document["parity"]["runs"][0]["checks"]
        ]
        timings += [{"op": f"bundle {attention} {flavor}", **run} for run in document["latency"]["runs"]]
    return checks, timings


def main() -> None:
    """Gather everything and write one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "engines" / "evidence")
    arguments = parser.parse_args()
    try:
        gpu = device()
    except VaExportError as error:
        raise SystemExit(f"error: {error}") from None
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    with tempfile.TemporaryDirectory() as scratch:
        checks, timings = gpu_tests(Path(scratch)), []
        for attention in ("plugin", "native"):
            target = "sm" + gpu["compute_capability"].replace(".", "")
            rows, times = bundle_rows(Path(scratch), attention, target)
            checks += rows
            timings += times
    evidence = {
        "device": gpu,
        "commit": commit.strip(),
        "date": datetime.now(UTC).date().isoformat(),
        "checks": checks,
        "timings": timings,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"{re.sub(r'[^a-z0-9]+', '-', gpu['name'].lower())}-main-job.json"
    path.write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf-8")
    failed = [row["name"] for row in checks if not row["passed"]]
    print(f"{path}: {len(checks) - len(failed)} of {len(checks)} passed")
    if failed or not checks:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
