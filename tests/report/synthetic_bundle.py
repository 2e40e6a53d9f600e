"""Bundle directories with made-up but plausible figures, for the report's tests."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from documents_made import manifest_document

from va_export.bundle.document import FileEntry, ManifestDocument

HOSTILE = "<script>alert('x')</script>"
N_FRAMES, GRID, SIDE = 3, 4, 64


def manifest(**changes: Any) -> ManifestDocument:
    """A manifest with one engine, as an export would leave it."""
    model = msgspec.structs.replace(manifest_document().model, name="InternVL2-8B", source="OpenGVLab/InternVL2-8B")
    files = {
        "onnx/vision.onnx": FileEntry(bytes=3 << 20, sha256="a1" * 32),
        "onnx/decoder.onnx": FileEntry(bytes=1 << 20, sha256="b2" * 32),
    }
    video = {"file": "bikes.mp4", "frames": N_FRAMES, "indices": [15, 46, 77]}
    return manifest_document(**{"model": model, "files": files, "video": video, **changes})


def check(stage: str, anchors: bool | None, used: float, **changes: Any) -> dict[str, Any]:
    """One entry of a run's checks; it passed where `used` is at most 1."""
    return {
        "stage": stage,
        "anchors": anchors,
        "max_abs": 0.01 * used,
        "mean_abs": 1e-3 * used,
        "max_rel": 0.02 * used,
        "mean_rel": 2e-3 * used,
        "cosine": 0.9999981,
        "nan": 0,
        "inf": 0,
        "top1_agreement": 1.0 if stage.endswith("logits") else None,
        "tolerance": {"atol": 0.01, "rtol": 0.01, "cosine": 0.999},
        "tolerance_used": used,
        "passed": used <= 1,
        **changes,
    }


def parity() -> dict[str, Any]:
    """Two runs that passed, of six checks each; the worst uses 31 % of its tolerance."""
    checks = [
        check("visual_tokens", None, 0.12),
        # float16: no bound on single scores, the cosine decides
        check("sharing_score", None, 0.0, tolerance={"atol": None, "rtol": 0.0, "cosine": 0.999}),
        check("prefill_logits", True, 0.31),
        check("decode_logits", True, 0.22),
        check("prefill_logits", False, 0.18),
        check("decode_logits", False, 0.2),
    ]
    greedy = [
        {"anchors": on, "reference": [11, 12, 13, 14], "bundle": [11, 12, 13, 14], "matching_prefix": 4}
        for on in (True, False)
    ]
    run = {"backend": "onnxruntime", "device": "cpu", "passed": True, "checks": checks, "greedy": greedy}
    return {
        "passed": True,
        "precision": "fp16",
        "reference": "PyTorch float32",
        "runs": [copy.deepcopy({**run, "attention": form}) for form in ("plugin", "native")],
        "not_run": [
            {
                "what": "tensorrt-rtx engines",
                "reason": "no NVIDIA driver on this machine",
                "command": "va-check BUNDLE --backend tensorrt-rtx",
            }
        ],
    }


def timing(median: float) -> dict[str, float | int]:
    """One stage's statistics, spread as a quiet machine spreads them."""
    factors = {"min": 0.96, "mean": 1.01, "median": 1.0, "p90": 1.05, "p95": 1.08, "p99": 1.2, "max": 1.25}
    return {"iterations": 10, **{f"{name}_ms": factor * median for name, factor in factors.items()}, "cov": 0.034}


def latency() -> dict[str, Any]:
    """Two runs on a CPU; with anchors the end-to-end median is 1130 ms instead of 1000."""
    medians = {"preprocess": 12.0, "vision": 300.0, "prefill": 450.0, "decode_per_token": 29.0, "end_to_end": 1000.0}
    stages = {name: timing(value) for name, value in medians.items()}
    anchored = {**stages, "score": timing(110.0), "prefill": timing(470.0), "end_to_end": timing(1130.0)}
    run = {
        "backend": "onnxruntime",
        "device": "cpu",
        "attention": "plugin",
        "warmup": 2,
        "iterations": 10,
        "new_tokens": 8,
        "peak_memory_bytes": {"host": 3 << 30, "device": None},
    }
    return {
        "environment": {
            "cpu": "Example CPU 3000",
            "cores": 2,
            "memory_bytes": 24 << 30,
            "gpu": None,
            "os": "Linux",
            "python": "3.11.9",
            "libraries": {"onnxruntime": "1.32.0"},
        },
        "runs": [{**run, "anchors": True, "stages": anchored}, {**run, "anchors": False, "stages": stages}],
    }


def reference() -> dict[str, np.ndarray]:
    """Three frames of noise with 4 × 4 tokens each, in five subspaces."""
    random = np.random.default_rng(7)
    n_tokens = N_FRAMES * GRID * GRID
    return {
        "frames": random.integers(0, 256, (N_FRAMES, SIDE, SIDE, 3), dtype=np.uint8),
        "grid": np.array([N_FRAMES, 4, 4]),
        "sharing_score": random.random(n_tokens, dtype=np.float32),
        "labels": random.permutation(np.arange(n_tokens) % 5),
    }


def write_bundle(directory: Path, **parts: Any) -> Path:
    """Write the three files; a part (parity, latency, reference) given as None is left out."""
    made = {"parity": parity, "latency": latency, "reference": reference}
    directory.mkdir(parents=True, exist_ok=True)
    for name, make in made.items():
        part = parts.get(name, make())
        if part is None:
            continue
        if name == "reference":
            np.savez(directory / "reference.npz", **part)
        else:
            (directory / f"{name}.json").write_text(json.dumps(part), encoding="utf-8")
    return directory
