#!/usr/bin/env python
"""A whole model at full size with random weights: exported once, its time, memory and disk written down.

    .venv/bin/python scripts/full_size_export.py RECIPE                          # all layers, ONNX in float16
    .venv/bin/python scripts/full_size_export.py RECIPE --layers 4 --work /data  # fewer layers, on another disk
    .venv/bin/python scripts/full_size_export.py RECIPE -- --target sm89         # further options of va-export: engines
    .venv/bin/python scripts/full_size_export.py RECIPE --prove -- --frames 1    # and proven against float32

Needs the bundle's size twice on the disk of --work: the bundle, and a plain copy of it, which is what the time is
compared with. Both are removed at the end. Writes one JSON, to be committed under engines/evidence/.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from va_export.evidence.device import current_commit
from va_export.evidence.processes import watch

REPOSITORY = Path(__file__).parents[1]
# What an export may take: this much memory, and this much more time than a plain copy of the weights.
MEMORY_BOUND, COPY_FACTOR, COPY_MARGIN = 3e9, 2.0, 60.0


def main() -> int:
    """Entry point; 0 if the export ended well and every target was met."""
    arguments = _arguments()
    work = arguments.work.absolute()
    place = work / f"full-size-{os.getpid()}"  # everything of this run, so that its disk can be told
    output = place / "bundle"
    place.mkdir(parents=True)
    onnx_only = not any(option in arguments.rest for option in ("--target", "--tensorrt"))
    command = [sys.executable, "-c", "from va_export.cli.export import main; main()"]
    command += ["--model", arguments.model, "--weights", "random", "--fp16", "-o", str(output)]
    command += [] if arguments.prove else ["--no-parity"]
    command += ["--onnx-only"] if onnx_only else []
    command += ["--num-decoder-layers", str(arguments.layers)] if arguments.layers else []
    command += arguments.rest
    free = shutil.disk_usage(work).free
    print("running", *command[3:], flush=True)
    try:
        result = watch(command, folder=place, cwd=REPOSITORY)
        document = {
            "machine": _machine(free),
            "commit": current_commit(REPOSITORY),
            "date": datetime.now(UTC).date().isoformat(),
            "command": ["va-export", *(output.name if word == str(output) else word for word in command[3:])],
            "export": result.to_json(),
        }
        if result.code == 0:
            document["bundle"] = _bundle(output)
            document["copy"] = _plain_copy(output)
        for bundle in (output, output.with_name(output.name + ".failed")):
            if (bundle / "parity.json").is_file():
                document["parity"] = json.loads((bundle / "parity.json").read_text(encoding="utf-8"))
        # Engines and the proof need more of both.
        document["targets"] = _targets(document) if onnx_only and not arguments.prove else []
    finally:
        shutil.rmtree(place, ignore_errors=True)
    arguments.evidence.parent.mkdir(parents=True, exist_ok=True)
    arguments.evidence.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for target in document["targets"]:
        word = "met" if target["passed"] else "MISSED"
        print(f"{word:<7}{target['name']}: {target['measured']:g} {target['unit']}, bound {target['bound']:g}")
    print(arguments.evidence)
    return 0 if result.code == 0 and all(target["passed"] for target in document["targets"]) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="recipe, hub id, or folder with a config.json")
    parser.add_argument("--layers", type=int, help="decoder layers; default all")
    parser.add_argument("--prove", action="store_true", help="keep the proof, which takes hours with all frames")
    parser.add_argument("--work", type=Path, default=Path(), help="folder on the disk to use")
    parser.add_argument("--evidence", type=Path, default=Path("full-size-export.json"), help="the JSON to write")
    parser.epilog = "Further options of va-export follow after --."
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    return parser.parse_args(given[:end], argparse.Namespace(rest=given[end + 1 :]))


def _machine(free: int) -> dict[str, Any]:
    memory = psutil.virtual_memory()
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory.total,
        "available_bytes": memory.available,
        "disk_free_bytes": free,
        "load": os.getloadavg()[0],
        "system": platform.platform(),
    }


def _bundle(output: Path) -> dict[str, Any]:
    """What was written, by the manifest's own hashes."""
    manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    return {
        "weights": manifest["model"]["weights"],
        "decoder_layers": manifest["model"]["text"]["num_layers"],
        "libraries": manifest["libraries"],
        "files": manifest["files"],
    }


def _plain_copy(output: Path) -> dict[str, Any]:
    """Copy the bundle's data files once, flushed to the disk, as `cp` would."""
    copy = output.with_name("copy")
    copy.mkdir()
    start, total = time.perf_counter(), 0
    for path in sorted(output.rglob("*.data")):
        shutil.copyfile(path, copy / path.name)
        with (copy / path.name).open("rb") as stream:
            os.fsync(stream.fileno())
        total += path.stat().st_size
    seconds = time.perf_counter() - start
    shutil.rmtree(copy)
    return {"bytes": total, "seconds": round(seconds, 2)}


def _targets(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Bounds on the export, as rows of an evidence file's `targets`."""
    export = document["export"]
    rows = [_target("peak memory of the largest process", export["peak_rss_bytes"] / 1e9, MEMORY_BOUND / 1e9, "GB")]
    if "copy" in document:
        bound = COPY_FACTOR * document["copy"]["seconds"] + COPY_MARGIN
        rows.append(_target("wall time against twice a plain copy and a minute", export["seconds"], bound, "s"))
    return rows


def _target(name: str, measured: float, bound: float, unit: str) -> dict[str, Any]:
    return {
        "name": name,
        "measured": round(measured, 3),
        "relation": "<=",
        "bound": round(bound, 3),
        "unit": unit,
        "passed": measured <= bound,
    }


if __name__ == "__main__":
    raise SystemExit(main())
