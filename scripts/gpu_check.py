#!/usr/bin/env python
"""AnchoredAttention on a machine with an NVIDIA GPU: right, and how fast; writes engines/evidence/<gpu>-attention.json.

    .venv/bin/python scripts/gpu_check.py                    # build, check, sanitize, time
    .venv/bin/python scripts/gpu_check.py --only checks      # or plugin, timings, sanitizer; several by commas
    python scripts/gpu_check.py --device cpu --output /tmp/trial    # the script itself, tiny, on the eager reference

Needed: PyTorch with CUDA, nvcc, CMake, TensorRT's headers (fetched where TENSORRT_ROOT names none). What fails is
recorded, not hidden: the exit code is 1 then. What only Hopper can reach is a target on Hopper alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # this checkout's package, installed or not

from va_export.errors import VaExportError  # noqa: E402
from va_export.evidence.attention_parts import (  # noqa: E402
    PARTS,
    check_part,
    kernels_on,
    plugin_part,
    sanitized_part,
    timing_part,
)
from va_export.evidence.attention_targets import attention_targets  # noqa: E402
from va_export.evidence.device import current_commit, describe_cpu, describe_device, measure_ceilings  # noqa: E402
from va_export.evidence.document import begin_evidence, check_row, failures, write_evidence  # noqa: E402
from va_export.evidence.native_build import NativeBuild, build_native, built, cuda_arch  # noqa: E402
from va_export.evidence.workers import run_worker, write_rows  # noqa: E402
from va_export.native import LIBRARY_VARIABLE  # noqa: E402

STEPS = ("checks", "plugin", "sanitizer", "timings")
SANITIZERS = ("memcheck", "racecheck")
PART_SECONDS = 240.0  # a part that hangs must not take the others' time
MEMORY_OF_A_WORKER = 12 << 30  # the largest shape's answer in float64
Rows = dict[str, list[dict[str, Any]]]


def parse_arguments() -> argparse.Namespace:
    """The options; those of --worker are the script's own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(STEPS), help=f"of {', '.join(STEPS)}; several by commas")
    parser.add_argument("--quick", action="store_true", help="fewer shapes, timings at toy size: to try the script")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: the eager reference, tiny")
    parser.add_argument("--output", type=Path, default=ROOT / "engines" / "evidence")
    parser.add_argument("--build-folder", type=Path, default=ROOT / "build" / "gpu-check")
    parser.add_argument("--arch", help="build for this CMake architecture, such as 90-real; default: this GPU's")
    parser.add_argument("--build-only", action="store_true", help="build (--arch is needed without a GPU) and stop")
    parser.add_argument("--no-build", action="store_true", help="take what the build folder holds")
    parser.add_argument("--timing-seconds", type=float, default=200.0, help="cases not begun by then are left out")
    parser.add_argument("--worker", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--kernel", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.steps = [step for step in STEPS if step in arguments.only.split(",")]
    if set(arguments.only.split(",")) - set(STEPS):
        parser.error(f"--only takes {', '.join(STEPS)}")
    if arguments.device == "cpu":
        arguments.steps = [step for step in arguments.steps if step in ("checks", "timings")]  # the rest needs a GPU
    return arguments


def work(arguments: argparse.Namespace) -> None:
    """In a worker: one part, its rows written as they come."""
    match arguments.worker:
        case "checks":
            rows = check_part(arguments.kernel, arguments.device, quick=arguments.quick)
        case "plugin":
            build = built(arguments.build_folder)
            rows = plugin_part(build.host, build.library)
        case "timings":
            rows = timing_part(arguments.device, quick=arguments.quick, seconds=arguments.timing_seconds)
        case _:
            rows = sanitized_part()
    write_rows(arguments.rows, rows)


class Workers:
    """Starts this script again for each part, with the library that was built."""

    def __init__(self, arguments: argparse.Namespace, build: NativeBuild | None, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        self.environment = {} if build is None else {LIBRARY_VARIABLE: str(build.library)}

    def command(self, part: str, rows: Path, kernel: str | None = None) -> list[str]:
        """This script as a worker."""
        given = self.arguments
        command = [sys.executable, str(Path(__file__).resolve()), "--worker", part, "--rows", str(rows)]
        command += ["--device", given.device, "--build-folder", str(given.build_folder)]
        command += ["--timing-seconds", str(given.timing_seconds)]
        return command + (["--kernel", kernel] if kernel else []) + (["--quick"] if given.quick else [])

    def run(self, part: str, kernel: str | None = None) -> Rows:
        """One part; its rows."""
        name = " ".join(filter(None, (part, kernel)))
        found: Rows = {"checks": [], "timings": []}
        path = self.folder / f"{name.replace(' ', '-')}.jsonl"
        seconds = PART_SECONDS + (self.arguments.timing_seconds if part == "timings" else 0.0)
        command = self.command(part, path, kernel)
        run_worker(name, command, path, found, environment=self.environment, timeout_seconds=seconds)
        print(f"{name}: {len(found['checks'])} checks, {len(found['timings'])} timings", flush=True)
        return found

    def sanitize(self, tool: str) -> Rows:
        """One tool of compute-sanitizer over our kernels (all in the namespace va_export); a row for the tool."""
        name = f"compute-sanitizer {tool}"
        program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
        if program is None:
            return {"checks": [check_row(name, False, message="compute-sanitizer was not found")], "timings": []}
        path = self.folder / f"{tool}.jsonl"
        checker = [program, "--tool", tool, "--error-exitcode", "66", "--kernel-name", "kns=va_export"]
        checker += ["--report-api-errors", "no"]  # PyTorch asks for what a GPU may lack, and copes
        # Each tensor in an allocation of its own, so that its end is an end to memcheck too.
        environment = {**self.environment, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        found: Rows = {"checks": []}
        command = [*checker, *self.command("sanitized", path)]
        run_worker(name, command, path, found, environment=environment, timeout_seconds=PART_SECONDS)
        failed = [row for row in found["checks"] if not row["passed"]]
        launches = len(found["checks"])
        message = failed[0].get("message", failed[0]["name"]) if failed else f"{launches} checks under the tool"
        print(f"{name}: {message}", flush=True)
        return {"checks": [check_row(name, launches > 0 and not failed, message=message)], "timings": []}

    def of_step(self, step: str) -> list[Callable[[], Rows]]:
        """What a step starts; each gives its rows."""
        if step == "checks":
            return [partial(self.run, "checks", kernel) for kernel in kernels_on(self.arguments.device)]
        if step == "sanitizer":
            return [partial(self.sanitize, tool) for tool in SANITIZERS]
        return [partial(self.run, step)]


def gather(arguments: argparse.Namespace) -> None:
    """Build, run every step, write the file; what is timed runs alone, and last."""
    on_gpu = arguments.device == "cuda"
    device = describe_device() if on_gpu else describe_cpu()
    commit = current_commit(ROOT)
    build = prepare(arguments, device["compute_capability"]) if on_gpu else None
    document = begin_evidence(device, commit, measure_ceilings())
    with tempfile.TemporaryDirectory() as folder:
        workers = Workers(arguments, build, Path(folder))
        jobs = [job for step in arguments.steps if step != "timings" for job in workers.of_step(step)]
        with ThreadPoolExecutor(workers_at_once(on_gpu)) as pool:
            results = list(pool.map(lambda job: job(), jobs))
        results += [job() for step in arguments.steps if step == "timings" for job in workers.of_step(step)]
    for found in results:
        document["checks"] += found["checks"]
        document["timings"] += found["timings"]
    if "timings" in arguments.steps and on_gpu and not arguments.quick:
        copy = document["ceilings"]["copy_tb_per_s"]
        document["targets"] = attention_targets(document["timings"], copy, device["compute_capability"])
    report(document, write_evidence(document, arguments.output, "attention"))
    if failures(document):
        raise SystemExit(1)


def workers_at_once(on_gpu: bool) -> int:
    """All together where the GPU's memory holds them all; what is checked there takes no clock's word."""
    if not on_gpu:
        return 1
    import torch

    memory = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0
    return max(1, min(int(memory // MEMORY_OF_A_WORKER), (os.cpu_count() or 1) // 2, 6))


def prepare(arguments: argparse.Namespace, capability: str | None = None) -> NativeBuild:
    """The library for this GPU, or for --arch; built unless --no-build."""
    if arguments.no_build:
        return built(arguments.build_folder)
    arch = arguments.arch or cuda_arch(capability or describe_device()["compute_capability"])
    print(f"building for {arch} …", flush=True)
    return build_native(ROOT, arguments.build_folder, arch)


def report(document: dict[str, Any], path: Path) -> None:
    """What a person wants to see at the end."""
    for row in document["targets"]:
        measured = "not measured" if row["measured"] is None else f"{row['measured']:.3g}"
        verdict = "met   " if row["passed"] else "MISSED"
        print(f"{verdict} {row['name']}: {measured} (target {row['relation']} {row['bound']:g} {row['unit']})")
    failed = [row for row in document["checks"] if not row["passed"]]
    for row in failed[:20]:
        print(f"FAILED {row['name']}: {row.get('message') or row['max_rel_err']} (at most {row['tolerance']})")
    checks = len(document["checks"])
    print(f"{path}: {checks - len(failed)} of {checks} checks passed, {len(document['timings'])} timings")


def main() -> None:
    """Everything, or one part of it in a worker."""
    arguments = parse_arguments()
    try:
        if arguments.worker:
            work(arguments)
        elif arguments.build_only:
            print(prepare(arguments).library)
        else:
            gather(arguments)
    except VaExportError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
