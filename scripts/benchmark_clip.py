#!/usr/bin/env python3
"""Time to the first token of further questions about a clip, beside the first's, in one run.

    .venv/bin/python scripts/benchmark_clip.py [--model internvl2-2b --layers 4] [--frames 8] [--evidence FILE.json]

Random weights in the sizes of the recipe's checkpoint, cut to a few layers, float32, ONNX Runtime. A prompt is all
visual tokens of the frames and random ids of text before and behind them; gains are those of a random score. Per
repeat, one after the other: a first question of a clip that nobody asked about (whole prefill, and the copy of what is
kept), the same prompt where nothing is kept, and a further question. Seeing the clip (vision, and the score, which
takes longer than all else without PCA) is timed once and counted apart. The further question's logits must be those of
its whole prefill.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from va_export.evidence.device import current_commit, describe_cpu
from va_export.runtime.bundle import Bundle
from va_export.runtime.decoding import Row, Wish
from va_export.runtime.generation import Encoded
from va_export.runtime.processing.fixed_frames import FixedFrames
from va_export.runtime.stage_clock import StageClock
from va_export.runtime.token_choice import GREEDY, TokenChoice

BEFORE, BEHIND = 60, 40  # tokens of text


def main() -> int:
    """0 where the logits agree."""
    arguments = parse()
    with tempfile.TemporaryDirectory() as folder:
        path: Path = arguments.bundle or Path(folder) / "bundle"
        if arguments.bundle is None:
            command = [str(Path(sys.executable).with_name("va-export")), "--model", arguments.model, "-o", str(path)]
            command += ["--weights", "random", "--num-decoder-layers", str(arguments.layers), "--fp32", "--onnx-only"]
            subprocess.run([*command, "--no-parity"], check=True, stdout=subprocess.DEVNULL)
        with Bundle.open(path) as bundle:
            found = measure(bundle, arguments.frames, arguments.repeats)
            text = bundle.manifest.data.model.text
            sizes = {"layers": text.num_layers, "hidden_size": text.hidden_size}
    document = {
        "what": "time to first token of a further question about a clip, float32, ONNX Runtime, CPU",
        "model": {"recipe": arguments.model, **sizes},
        "machine": describe_cpu(),
        "commit": current_commit(Path(__file__).parents[1]),
        "date": datetime.now(UTC).date().isoformat(),
        "repeats": arguments.repeats,
        **found,
    }
    print(json.dumps(document, indent=1))
    if arguments.evidence:
        arguments.evidence.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if found["largest_difference"] <= found["tolerance"] else 1


def measure(bundle: Bundle, frames: int, repeats: int) -> dict[str, object]:
    """Medians and ranges of all repeats, in milliseconds."""
    random = np.random.default_rng(0)
    processing, manifest = bundle.processing, bundle.manifest.data
    assert isinstance(processing, FixedFrames), "frames of one size each"
    n_visual = frames * processing.tokens_per_frame
    marker = manifest.model.image_token_id or manifest.model.text.vocab_size - 1
    pixels = random.normal(0, 1, (frames, 3, processing.image_size, processing.image_size)).astype(np.float32)

    def prompt(before: np.ndarray, seed: int) -> Encoded:
        behind = np.random.default_rng(seed).integers(5, 5000, BEHIND)
        ids = np.concatenate([before, np.full(n_visual, marker), behind])[None]
        prepared = processing.prepare_ids(ids, {"pixel_values": pixels}, frames)
        gains = np.zeros(prepared.length, np.float32), np.ones(prepared.length, np.float32)
        gains[0][prepared.is_visual[0]], gains[1][prepared.is_visual[0]] = log_gain, gain
        return Encoded(prepared, visual, None, gains)

    log_gain, gain = np.log(1 + 9.5 * random.random(n_visual)), 1 + 2.5 * random.random(n_visual)
    visual, start = None, time.perf_counter()
    first = prompt(random.integers(5, 5000, BEFORE), 0)
    seen = bundle.encoder.see(first.prepared, is_scored=False, clock=StageClock(bundle.backend))
    vision_ms, visual = 1e3 * (time.perf_counter() - start), seen.visual
    assert visual is not None

    def ask(encoded: Encoded, name: str | None) -> tuple[float, Row]:
        row, wish = Row(), Wish(TokenChoice(GREEDY, ()), 1, keeps_logits=True)
        began = time.perf_counter()
        next(bundle.decoding.tokens(encoded, wish, StageClock(bundle.backend), row, seen=name))
        return 1e3 * (time.perf_counter() - began), row

    times: dict[str, list[float]] = {"first": [], "first_nothing_kept": [], "further": []}
    difference = largest = 0.0
    for number in range(repeats + 1):  # the first warms up
        before = random.integers(5, 5000, BEFORE)
        one, other = prompt(before, 2 * number), prompt(before, 2 * number + 1)
        spent = {
            "first": ask(one, seen.digest),
            "first_nothing_kept": ask(replace(one), None),
            "further": ask(other, seen.digest),
        }
        assert [row.reused for _, row in spent.values()] == [0, 0, BEFORE + n_visual]
        whole = ask(other, None)[1].logits[0]
        difference = max(difference, float(np.abs(whole - spent["further"][1].logits[0]).max()))
        largest = max(largest, float(np.abs(whole).max()))
        if number:
            for name, (value, _) in spent.items():
                times[name].append(value)
    ratio: Callable[[str, str], float] = lambda a, b: statistics.median(  # noqa: E731
        x / y for x, y in zip(times[a], times[b], strict=True)
    )
    return {
        "prompt_tokens": BEFORE + n_visual + BEHIND,
        "further_question_tokens": BEHIND,
        "milliseconds": {
            name: {"median": statistics.median(all_), "range": [min(all_), max(all_)]} for name, all_ in times.items()
        },
        "further_over_first": ratio("further", "first"),
        "first_over_nothing_kept": ratio("first", "first_nothing_kept"),
        "vision_milliseconds_once": vision_ms,
        "largest_difference": difference,
        # float32 sums in another order, over logits of this size.
        "tolerance": 1e-4 * largest,
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", default="internvl2-2b")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bundle", type=Path, help="one that was made before, as above")
    parser.add_argument("--evidence", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
