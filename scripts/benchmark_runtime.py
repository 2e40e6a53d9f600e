#!/usr/bin/env python3
"""Time and memory of a decoder in ONNX Runtime, beside Hugging Face's own with SDPA, in one run.

    .venv/bin/python scripts/benchmark_runtime.py [--model internvl2-2b --layers 4] [--evidence FILE.json]

Random weights in the sizes of the recipe's checkpoint, cut to a few layers, float32 on both sides, each with as many
threads as it takes of itself. Each side is a process of its own; their runs take turns, with a pause in which waiting
threads go to sleep. Prefill: a prompt's ids to the logits of its last position, ours with gains, in chunks as a bundle
does it; the peer has none. Decode: one token behind so many, in a cache that just holds them, and in larger ones. Extra
memory: the peak of the longest prefill beyond what the opened side holds after one token. Both sides' logits of the
same plain prompt must agree.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from va_export.evidence.device import current_commit, describe_cpu
from va_export.export.recipe import resolve_model
from va_export.runtime.processing import Prepared

PREFILLS = (512, 1024, 2304)
# Tokens in the cache; its slots.
DECODES = ((448, 512), (448, 2048), (448, 8192), (512, 576), (1024, 1088), (2304, 2368))
STEPS = 5  # of a decode run, whose time is their median
PAUSE = 0.3  # seconds; OpenMP's threads wait busily for 0.2


class Side(Protocol):
    """One decoder."""

    def prefill(self, length: int, *, gains: bool = True) -> np.ndarray:
        """A prompt into an empty cache; (vocab,) logits of its last position."""

    def fill(self, length: int, capacity: int) -> Callable[[], None]:
        """A cache that holds so many tokens; a step behind them, which can be run again."""


def main() -> int:
    """0 where both sides agree."""
    arguments = parse()
    with tempfile.TemporaryDirectory() as folder:
        bundle: Path = arguments.bundle or Path(folder) / "bundle"
        if arguments.bundle is None:
            command = [str(Path(sys.executable).with_name("va-export")), "--model", arguments.model, "-o", str(bundle)]
            command += ["--weights", "random", "--fp32", "--onnx-only", "--components", "decoder,embedding"]
            command += ["--num-decoder-layers", str(arguments.layers), "--max-kv-cache-capacity", "8192"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        context = multiprocessing.get_context("spawn")
        sides: dict[str, Connection] = {}
        for name in SIDES:
            sides[name], other = context.Pipe()
            context.Process(target=serve, args=(name, other, bundle), daemon=True).start()
            other.close()  # the process has its own: where that one dies, recv says so and does not wait
            sides[name].recv()  # opened
        plain = [ask(connection, ("plain", PREFILLS[0])) for connection in sides.values()]
        extra = {name: ask(connection, ("extra", PREFILLS[-1])) for name, connection in sides.items()}
        cases = [*(("prefill", length) for length in PREFILLS), *(("decode", *case) for case in DECODES)]
        seconds: dict[tuple[Any, ...], dict[str, list[float]]] = {case: {} for case in cases}
        for number in range(1 + arguments.repeats):  # the first warms up
            for case in cases:
                for name, connection in sides.items():
                    time.sleep(PAUSE)
                    spent = ask(connection, case)
                    if number:
                        seconds[case].setdefault(name, []).append(spent)
    ours, theirs = plain
    error = float(np.abs(ours - theirs).max() / np.sqrt(np.mean(theirs.astype(np.float64) ** 2)))
    first, second = SIDES
    capacities = [seconds[case][first] for case in cases if case[:2] == ("decode", DECODES[0][0])]
    result = {
        "commit": current_commit(Path(__file__).parents[1]),
        "date": datetime.now(UTC).date().isoformat(),
        "software": describe_cpu(),
        "cores": len(os.sched_getaffinity(0)),
        **{name: getattr(arguments, name) for name in ("model", "layers", "repeats")},
        "prefill": [
            {"tokens": case[1], **compared(seconds[case], first, second)} for case in cases if case[0] == "prefill"
        ],
        "decode": [
            {"tokens": case[1], "capacity": case[2], **compared(seconds[case], first, second)}
            for case in cases
            if case[0] == "decode"
        ],
        "decode_in_the_largest_over_the_smallest_cache": spread(ratios(capacities[-1], capacities[0])),
        "prefill_extra_gigabytes": {"tokens": PREFILLS[-1], **{name: round(b / 1e9, 3) for name, b in extra.items()}},
        "largest_error_over_rms": error,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.evidence is not None:
        arguments.evidence.parent.mkdir(parents=True, exist_ok=True)
        arguments.evidence.write_text(text + "\n", encoding="utf-8")
    return 0 if error < 1e-4 else 1  # float32 through a few layers


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="internvl2-2b", help="a recipe")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bundle", type=Path, help="one that was made as this script makes it; else one is made")
    parser.add_argument("--evidence", type=Path, help="write the result there too")
    arguments = parser.parse_args()
    if resolve_model(arguments.model).random_weights:
        parser.error(f"--model {arguments.model}: a tiny checkpoint's weights are not what both sides draw here")
    return arguments


def ask(connection: Connection, what: tuple[Any, ...]) -> Any:
    """What a side answers."""
    connection.send(what)
    return connection.recv()


def compared(seconds: dict[str, list[float]], ours: str, theirs: str) -> dict[str, Any]:
    """Both sides' times and their ratios, pair by pair."""
    return {
        "seconds": {name: spread(times) for name, times in seconds.items()},
        "time_of_transformers_over_ours": spread(ratios(seconds[theirs], seconds[ours])),
    }


def ratios(above: list[float], below: list[float]) -> list[float]:
    """Run by run."""
    return [a / b for a, b in zip(above, below, strict=True)]


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    named = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 4) for name, value in named.items()}


def serve(name: str, connection: Connection, bundle: Path) -> None:
    """Open one side and answer what is asked, until nobody asks any more."""
    side = SIDES[name](bundle)
    side.prefill(1)
    connection.send("opened")
    steps: dict[tuple[int, int], Callable[[], None]] = {}
    while True:
        try:
            kind, *numbers = connection.recv()
        except EOFError:
            return
        if kind == "plain":
            connection.send(side.prefill(numbers[0], gains=False))
        elif kind == "extra":
            before = resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is what is resident now
            side.prefill(numbers[0])
            connection.send(resident("VmHWM") - before)
        elif kind == "prefill":
            connection.send(timed(lambda length=numbers[0]: side.prefill(length)))
        else:
            case = (numbers[0], numbers[1])
            if case not in steps:
                steps[case] = side.fill(*case)
            connection.send(statistics.median(timed(steps[case]) for _ in range(STEPS)))


def timed(run: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def resident(field: str) -> int:
    """Bytes of this process, by the name in Linux' /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))


def ids_of(length: int) -> np.ndarray:
    """A prompt of noise, (1, length)."""
    return np.random.default_rng(length).integers(0, 90_000, (1, length))


class OnnxRuntimeSide:
    """The bundle's graphs, as its sessions run them."""

    def __init__(self, bundle: Path) -> None:
        from va_export.bundle.manifest import read_manifest
        from va_export.runtime.backends.onnxruntime import OnnxRuntimeBackend

        self._manifest = read_manifest(bundle)
        self._backend = OnnxRuntimeBackend(self._manifest, "plugin")

    def _session(self, capacity: int) -> Any:
        from va_export.runtime.session import Session

        text = self._manifest.data.model.text
        nothing, cache = np.zeros(1, np.int64), self._backend.new_cache(1, capacity)
        return Session(self._backend, text.hidden_size, capacity, cache, nothing, nothing.copy(), 1, text.whole_from)

    def _prefill(self, session: Any, length: int, *, gains: bool) -> np.ndarray:
        no_token, positions = np.zeros((1, length), np.bool_), np.arange(length)[None, None]
        prompt = Prepared({}, ids_of(length), no_token, no_token, positions, length)
        strength = np.linspace(0, 1, length, dtype=np.float32) if gains else np.zeros(length, np.float32)
        logits = session.prefill(0, prompt, None, (np.log1p(9.5 * strength), 1 + 2.5 * strength))
        return np.asarray(logits[0])

    def prefill(self, length: int, *, gains: bool = True) -> np.ndarray:
        return self._prefill(self._session(self._backend.cache_capacity(length, length)), length, gains=gains)

    def fill(self, length: int, capacity: int) -> Callable[[], None]:
        session = self._session(capacity)
        self._prefill(session, length, gains=True)
        past, position = session.past_length, session.next_position

        def step() -> None:
            session.past_length, session.next_position = past, position
            session.step(np.array([7]))

        return step


class TransformersSide:
    """Hugging Face's own classes with the same weights."""

    def __init__(self, bundle: Path) -> None:
        import torch

        from va_export.bundle.manifest import read_manifest
        from va_export.checkpoint.json_files import read_json
        from va_export.checkpoint.random_weights import RandomCheckpoint
        from va_export.models import family_for
        from va_export.models.family import Choices
        from va_export.models.parameters import read_parameters, set_parameter

        config = read_json(bundle / "config.json", what="configuration")
        family = family_for(config)
        spec = family.spec_from_config(config, Choices(read_manifest(bundle).data.model.text.num_layers))
        weights = {name: source for name, source in family.weight_map(spec).items() if source.component != "vision"}
        with torch.device("meta"):
            self._model: Any = family.build_model(spec)
        checkpoint = RandomCheckpoint(bundle, config, weights, seed=0)
        for name, value in read_parameters(weights, weights, checkpoint, torch.float32):
            set_parameter(self._model, name, torch.nn.Parameter(value, requires_grad=False))
        self._model.get_decoder().set_attn_implementation("sdpa")

    def _run(self, ids: np.ndarray, cache: Any) -> np.ndarray:
        import torch

        with torch.no_grad():
            decoder = self._model.get_decoder()
            hidden = decoder(input_ids=torch.from_numpy(ids), past_key_values=cache, use_cache=True).last_hidden_state
            return np.asarray(self._model.lm_head(hidden[:, -1])[0].numpy())

    def _cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self._model.config.text_config)

    def prefill(self, length: int, *, gains: bool = True) -> np.ndarray:
        return self._run(ids_of(length), self._cache())

    def fill(self, length: int, capacity: int) -> Callable[[], None]:
        cache = self._cache()
        self._run(ids_of(length), cache)

        def step() -> None:
            self._run(np.array([[7]]), cache)
            cache.crop(-1)

        return step


SIDES: dict[str, Callable[[Path], Side]] = {"onnxruntime": OnnxRuntimeSide, "transformers sdpa": TransformersSide}

if __name__ == "__main__":
    sys.exit(main())
