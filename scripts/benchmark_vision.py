#!/usr/bin/env python3
"""Time and memory of a vision tower in ONNX Runtime, beside Hugging Face's own forward with SDPA, in one run.

    .venv/bin/python scripts/benchmark_vision.py --model qwen2.5-vl-3b --frames 8 --size 644x476 [--evidence FILE.json]

Random weights in the sizes of the recipe's checkpoint, float32 on both sides, each with as many threads as it takes of
itself. Each side is a process of its own, which tells its peak memory; their runs take turns. What they compute, visual
tokens of the same pixels, must agree.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from va_export.evidence.device import current_commit
from va_export.export.recipe import resolve_model

Side = Callable[[Path, argparse.Namespace], Callable[[], np.ndarray]]
_BYTES = 1024  # of ru_maxrss on Linux


def main() -> int:
    """0 where both sides agree."""
    arguments = parse()
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        command = [str(Path(sys.executable).with_name("va-export")), "--model", arguments.model, "-o", str(bundle)]
        command += ["--weights", "random", "--fp32", "--onnx-only", "--components", "vision"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        context = multiprocessing.get_context("spawn")
        sides: dict[str, Connection] = {}
        for name in SIDES:
            sides[name], other = context.Pipe()
            context.Process(target=serve, args=(name, other, bundle, arguments), daemon=True).start()
            other.close()  # the process has its own: where that one dies, recv says so and does not wait
            sides[name].recv()  # opened
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(1 + arguments.repeats):  # the first warms up
            for name, connection in sides.items():
                connection.send("run")
                seconds[name].append(connection.recv())
        found, peaks = {}, {}
        for name, connection in sides.items():
            connection.send("end")
            found[name], peaks[name] = connection.recv()
    ours, theirs = found.values()
    error = float(np.abs(ours - theirs).max() / np.sqrt(np.mean(theirs.astype(np.float64) ** 2)))
    first, second = (times[1:] for times in seconds.values())
    result = {
        "commit": current_commit(Path(__file__).parents[1]),
        "date": datetime.now(UTC).date().isoformat(),
        **{name: getattr(arguments, name) for name in ("model", "frames", "size", "attention", "repeats")},
        "cores": len(os.sched_getaffinity(0)),
        "visual_tokens": len(ours),
        "seconds": {name: spread(times[1:]) for name, times in seconds.items()},
        "time_of_transformers_over_ours": spread([b / a for a, b in zip(first, second, strict=True)]),
        "peak_gigabytes": {name: round(peak / 1e9, 2) for name, peak in peaks.items()},
        "largest_error_over_rms": error,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.evidence is not None:
        arguments.evidence.write_text(text + "\n", encoding="utf-8")
    return 0 if error < 1e-4 else 1  # float32 through 32 blocks: measured 9.0e-6


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-vl-3b", help="a recipe")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", default="644x476", help="WIDTHxHEIGHT of the frames")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--attention", default="plugin", help="the form of the graph: plugin or native")
    parser.add_argument("--evidence", type=Path, help="write the result there too")
    arguments = parser.parse_args()
    if resolve_model(arguments.model).random_weights:
        parser.error(f"--model {arguments.model}: a tiny checkpoint's weights are not what both sides draw here")
    return arguments


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    named = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 4) for name, value in named.items()}


def serve(name: str, connection: Connection, bundle: Path, arguments: argparse.Namespace) -> None:
    """Open one side, run it as often as asked, and tell what it gave and its peak memory."""
    run = SIDES[name](bundle, arguments)
    connection.send("opened")
    tokens = np.zeros(0)
    while connection.recv() == "run":
        start = time.perf_counter()
        tokens = run()
        connection.send(time.perf_counter() - start)
    connection.send((tokens, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _BYTES))


def inputs_of(bundle: Path, arguments: argparse.Namespace) -> Mapping[str, Any]:
    """What the vision component takes, of noise."""
    from va_export.runtime.processing import PROCESSING_NAME, read_processing

    width, height = map(int, arguments.size.split("x"))
    frames = np.random.default_rng(0).integers(0, 256, (arguments.frames, height, width, 3), dtype=np.uint8)
    return read_processing(bundle / PROCESSING_NAME).vision_inputs(frames)


def onnxruntime_side(bundle: Path, arguments: argparse.Namespace) -> Callable[[], np.ndarray]:
    """The bundle's graph."""
    from va_export.bundle.manifest import read_manifest
    from va_export.runtime.backends.onnxruntime import OnnxRuntimeBackend

    inputs = inputs_of(bundle, arguments)
    backend = OnnxRuntimeBackend(read_manifest(bundle), arguments.attention)
    backend._session("vision")
    return lambda: np.asarray(backend.run("vision", inputs)["visual_tokens"])


def transformers_side(bundle: Path, arguments: argparse.Namespace) -> Callable[[], np.ndarray]:
    """Hugging Face's own classes with the same weights."""
    import torch

    from va_export.checkpoint.json_files import read_json
    from va_export.checkpoint.random_weights import RandomCheckpoint
    from va_export.models import family_for
    from va_export.models.parameters import read_parameters, set_parameter

    inputs = inputs_of(bundle, arguments)
    config = read_json(bundle / "config.json", what="configuration")
    family = family_for(config)
    spec = family.spec_from_config(config)
    weights = {name: source for name, source in family.weight_map(spec).items() if source.component == "vision"}
    with torch.device("meta"):
        model: Any = family.build_model(spec)
    checkpoint = RandomCheckpoint(bundle, config, weights, seed=0)
    for name, value in read_parameters(weights, weights, checkpoint, torch.float32):
        set_parameter(model, name, torch.nn.Parameter(value, requires_grad=False))
    (vision,) = (part for part in family.components(spec, "fp32", ()) if part.role == "vision")
    assert vision.reference is not None, "its graph is Hugging Face's own forward: there is nothing to compare"
    reference, tensors = vision.reference, [torch.from_numpy(inputs[tensor.name]) for tensor in vision.inputs]

    @torch.no_grad()
    def run() -> np.ndarray:
        return np.asarray(reference(model, tensors).numpy())

    return run


SIDES: dict[str, Side] = {"onnxruntime": onnxruntime_side, "transformers sdpa": transformers_side}

if __name__ == "__main__":
    sys.exit(main())
