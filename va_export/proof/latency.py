"""Latency of a bundle on one backend, stage by stage: medians and tails of repeated runs on the reference's frames.

Times on a shared CPU say little in themselves; they are there to be compared within one file, and to be measured
again on the target with `va-check`.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from va_export.proof.documents import LatencyRun, PeakMemory, StageTimes
from va_export.proof.reference import prepared_of
from va_export.runtime.anchoring import Anchoring
from va_export.runtime.bundle import Bundle

WARMUP = 2
# A full-size model takes minutes a question on a CPU: measuring one side (anchors on or off) stops after about this
# long, and the file says how many iterations there were.
BUDGET_SECONDS = 120.0


def measure_latency(
    bundle: Bundle,
    reference: Mapping[str, npt.NDArray[Any]],
    *,
    anchors: bool,
    iterations: int,
    new_tokens: int,
    warmup: int = WARMUP,
    budget_seconds: float = BUDGET_SECONDS,
    on_step: Callable[[int, int], None] | None = None,
) -> LatencyRun:
    """One entry of `runs` in latency.json.

    Args:
        iterations: timed repeats at the most; at least one is made, and no more once `budget_seconds` have gone by.
        warmup: untimed repeats before; no more than one when that alone takes a tenth of the budget.

    Stages: preprocess (resize and normalise frames that already have the model's size), vision, score (with
    anchors), prefill (embedding included), decode_per_token, end_to_end. Where the decoder is in shards, prefill and
    decode_per_token are over all of them, and each also has its own, as `prefill/decoder_0`. `stages` is the host's
    time, `gpu_stages` the GPU's own by events (None without them). Peak memory: the process's from its start, and the
    most that was in use on the GPU after a round, engines and caches included.
    """
    samples: dict[str, list[float]] = {}
    gpu_samples: dict[str, list[float]] = {}
    device_bytes: int | None = None
    start = time.perf_counter()
    warmed, measured = 0, 0
    while measured < iterations:
        times, gpu_times = _once(bundle, reference, anchors, new_tokens)
        in_use = bundle.backend.device_memory_bytes()
        device_bytes = in_use if device_bytes is None else max(device_bytes, in_use or 0)
        elapsed = time.perf_counter() - start
        if warmed < warmup and not (warmed and elapsed > budget_seconds / 10):
            warmed += 1
        else:
            measured += 1
            for collected, new in ((samples, times), (gpu_samples, gpu_times)):
                for stage, milliseconds in new.items():
                    collected.setdefault(stage, []).append(milliseconds)
        if on_step is not None:
            on_step(warmed + measured, warmup + iterations)
        if measured and elapsed > budget_seconds:
            break
    return LatencyRun(
        backend=bundle.backend.name,
        device=bundle.backend.device,
        attention=bundle.attention,
        anchors=anchors,
        warmup=warmed,
        iterations=measured,
        new_tokens=new_tokens,
        stages={stage: summarize(values) for stage, values in samples.items()},
        peak_memory_bytes=PeakMemory(_peak_host_bytes(), device_bytes),
        gpu_stages={stage: summarize(values) for stage, values in gpu_samples.items()} or None,
        kernels=bundle.backend.kernels,
    )


def _once(
    bundle: Bundle, reference: Mapping[str, npt.NDArray[Any]], anchors: bool, new_tokens: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds by stage, the host's and the GPU's."""
    start = time.perf_counter()
    prepared = replace(prepared_of(reference), vision_inputs=bundle.processing.vision_inputs(reference["frames"]))
    preprocess = 1e3 * (time.perf_counter() - start)
    result = bundle.answer(prepared, new_tokens, Anchoring(anchors), ignore_stop=True)
    end_to_end = 1e3 * (time.perf_counter() - start)
    times = {"preprocess": preprocess}
    times.update({stage: result.timings[stage] for stage in ("vision", "score", "prefill") if stage in result.timings})
    times.update({stage: spent for stage, spent in result.timings.items() if stage.startswith("prefill/")})
    if new_tokens > 1:
        for stage, spent in result.timings.items():
            if stage == "decode" or stage.startswith("decode/"):
                times[stage.replace("decode", "decode_per_token", 1)] = spent / (new_tokens - 1)
    times["end_to_end"] = end_to_end
    gpu_times = {stage: spent for stage, spent in result.gpu_timings.items() if stage != "decode"}
    if new_tokens > 1 and "decode" in result.gpu_timings:
        gpu_times["decode_per_token"] = result.gpu_timings["decode"] / (new_tokens - 1)
    return times, gpu_times


def summarize(milliseconds: list[float]) -> StageTimes:
    """Order statistics of repeated measurements."""
    values = np.asarray(milliseconds, dtype=np.float64)
    p90, p95, p99 = np.percentile(values, [90, 95, 99])
    return StageTimes(
        iterations=len(values),
        min_ms=float(values.min()),
        mean_ms=float(values.mean()),
        median_ms=float(np.median(values)),
        p90_ms=float(p90),
        p95_ms=float(p95),
        p99_ms=float(p99),
        max_ms=float(values.max()),
        cov=float(values.std() / values.mean()) if values.mean() > 0 else 0.0,
    )


def _peak_host_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
