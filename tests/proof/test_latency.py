"""Latency: what is counted, not how long it takes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from msgspec.structs import astuple

from va_export.documents import read
from va_export.machine import environment, library_versions
from va_export.proof import latency
from va_export.proof.documents import Latency, LatencyRun
from va_export.proof.latency import measure_latency, summarize
from va_export.runtime.anchoring import Anchoring
from va_export.runtime.processing import Prepared


def test_order_statistics() -> None:
    result = summarize([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (result.iterations, result.min_ms, result.median_ms, result.max_ms) == (5, 1.0, 3.0, 5.0)
    assert result.mean_ms == 3.0 and result.cov == pytest.approx(np.sqrt(2) / 3)
    assert result.p90_ms == pytest.approx(4.6) and result.p95_ms == pytest.approx(4.8)
    assert result.p99_ms == pytest.approx(4.96)
    assert astuple(summarize([7.0])) == (1, *[7.0] * 7, 0.0)
    assert summarize([0.0, 0.0]).cov == 0.0


class FakeBundle:
    """Says that every stage took as many milliseconds as there were questions before."""

    attention = "plugin"
    backend = SimpleNamespace(
        name="fake", device="cuda", device_memory_bytes=lambda: 1 << 30, kernels=("decode mma_sync",)
    )
    processing = SimpleNamespace(vision_inputs=lambda frames: {"pixel_values": frames})

    def __init__(self) -> None:
        self.asked: list[int] = []

    def answer(
        self, prepared: Prepared, new_tokens: int, anchoring: Anchoring, *, ignore_stop: bool
    ) -> SimpleNamespace:
        assert ignore_stop and set(prepared.vision_inputs) == {"pixel_values"}
        self.asked.append(new_tokens)
        number = float(len(self.asked))
        timings = {"vision": number, "prefill": number, "decode": 10 * number, "total": 100.0}
        if anchoring.enabled:
            timings["score"] = number
        gpu_timings = {"vision": number / 2, "decode": 5 * number}
        return SimpleNamespace(timings=timings, gpu_timings=gpu_timings)


REFERENCE = {
    "frames": np.zeros(3),
    "input_ids": np.zeros((1, 4), np.int64),
    "is_visual": np.zeros((1, 4), bool),
    "is_scored": np.zeros((1, 4), bool),
    "position_ids": np.arange(4)[None, None],
    "next_position": np.array(4),
    "grid": np.array((), np.int64),
}


def measure(bundle: FakeBundle, **options: Any) -> LatencyRun:
    return measure_latency(bundle, REFERENCE, **options)  # type: ignore[arg-type]


def test_warm_up_is_not_counted_and_stages_are() -> None:
    bundle, steps = FakeBundle(), []
    options = {"iterations": 3, "new_tokens": 6, "warmup": 2, "budget_seconds": 1e9}
    result = measure(bundle, anchors=True, on_step=lambda *step: steps.append(step), **options)
    assert len(bundle.asked) == 5 and steps == [(i, 5) for i in range(1, 6)]
    assert (result.warmup, result.iterations, result.new_tokens) == (2, 3, 6)
    assert result.stages["vision"].min_ms == 3.0  # the third question is the first that counts
    assert result.stages["decode_per_token"].min_ms == 10 * 3 / 5
    assert set(result.stages) == {"preprocess", "vision", "score", "prefill", "decode_per_token", "end_to_end"}
    assert {stage: times.min_ms for stage, times in (result.gpu_stages or {}).items()} == {
        "vision": 3.0 / 2,
        "decode_per_token": 5 * 3.0 / 5,
    }
    assert result.peak_memory_bytes.device == 1 << 30
    assert set(bundle.asked) == {6}
    assert result.peak_memory_bytes.host > 1 << 20


def test_without_anchors_and_without_a_second_token() -> None:
    result = measure(FakeBundle(), anchors=False, iterations=1, new_tokens=1)
    assert result.kernels == ("decode mma_sync",)
    assert set(result.stages) == {"preprocess", "vision", "prefill", "end_to_end"}


def test_a_slow_machine_measures_less(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 100_000, 10))  # ten seconds pass at every look at the clock
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: float(next(now))))
    bundle = FakeBundle()
    result = measure(bundle, anchors=True, iterations=50, new_tokens=2, budget_seconds=1.0)
    assert (result.warmup, result.iterations) == (1, 1) and len(bundle.asked) == 2


def test_the_machine_and_its_libraries_are_named() -> None:
    found = environment()
    assert found["cpu"] and found["cores"] >= 1 and found["memory_bytes"] > 1 << 28
    assert found["libraries"]["numpy"] == np.__version__ == library_versions()["numpy"]
    json.dumps(found, allow_nan=False)


def test_a_bundle_carries_its_latency(tiny_bundle: Path) -> None:
    document = read(tiny_bundle / "latency.json", Latency, what="latency", fix="")
    ours = [run for run in document.runs if run.backend == "onnxruntime"]
    assert [run.anchors for run in ours] == [True, False]
    assert document.environment.libraries
    for run in ours:
        assert 1 <= run.iterations <= 2 and ("score" in run.stages) == run.anchors
        assert all(stage.min_ms >= 0 for stage in run.stages.values())
