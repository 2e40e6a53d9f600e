"""What a run will write and need, said before it starts, and checked."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from va_export.errors import VaExportError
from va_export.recipe import COMPONENTS

if TYPE_CHECKING:
    from va_export.models.family import ModelSpec, WeightSource
    from va_export.recipe import ExportOptions

_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
# An engine holds its weights once; its build holds them about twice (measured with TensorRT-RTX 1.7).
_BUILD_MEMORY_FACTOR = 2.0
# Python with torch, transformers and ONNX Runtime loaded; the rest of the plan comes on top.
_BASE_MEMORY = 1 << 30
_SMALL_FILES = 16 << 20
# Kernels for each target and no weights: 20 MB for the default targets of TensorRT-RTX 1.7, 25 MB with PCA (measured).
_SCORE_ENGINE = 32 << 20


@dataclass(frozen=True)
class PlannedFile:
    """One file of the bundle and its estimated size in bytes."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Plan:
    """Files, disk and peak memory (bytes) of one export."""

    files: tuple[PlannedFile, ...]
    memory: int
    memory_reason: str

    @property
    def disk(self) -> int:
        """Bytes that the bundle takes."""
        return sum(file.bytes for file in self.files)


def component_bytes(spec: ModelSpec, weight_map: Mapping[str, WeightSource], precision: str) -> dict[str, int]:
    """Bytes of each component's weights, told apart by Hugging Face's names for the parts of a multimodal model."""
    sizes = dict.fromkeys(COMPONENTS, 0)
    for name, source in weight_map.items():
        if "embed_tokens" in name:
            component = "embedding"
        elif "language_model" in name or "lm_head" in name:
            component = "decoder"
        else:
            component = "vision"
        sizes[component] += math.prod(source.shape) * _BYTES[precision]
    return sizes


def plan_export(
    options: ExportOptions, spec: ModelSpec, weight_map: Mapping[str, WeightSource], flavors: Sequence[str]
) -> Plan:
    """Estimate an export from the shapes alone.

    Args:
        flavors: the TensorRT flavours that engines are built for; empty for ONNX only.
    """
    weights = {
        name: size
        for name, size in component_bytes(spec, weight_map, options.precision).items()
        if name in options.components
    }
    files = [PlannedFile(f"onnx/{name}.onnx.data", size) for name, size in weights.items()]
    files += [
        PlannedFile(f"engines/{flavor}/{name}.engine", size) for flavor in flavors for name, size in weights.items()
    ]
    files += [
        PlannedFile(f"engines/{flavor}/score.engine", _SCORE_ENGINE) for flavor in flavors if options.exports_score
    ]
    files.append(
        PlannedFile("graphs, plugin, tokenizer, reference, reports", _SMALL_FILES + _reference_bytes(options, spec))
    )
    candidates = {"writing the ONNX weights": 2 * max(_largest(weight_map) * 8, 1)}
    if flavors:
        candidates["building the largest engine"] = int(_BUILD_MEMORY_FACTOR * max(weights.values(), default=0))
    if options.proves:
        reference = sum(math.prod(source.shape) for source in weight_map.values()) * 4
        candidates["the float32 reference in PyTorch"] = reference
        candidates["running the bundle"] = sum(weights.values()) * 2
    reason = max(candidates, key=lambda name: candidates[name])
    return Plan(tuple(files), _BASE_MEMORY + candidates[reason], reason)


def _largest(weight_map: Mapping[str, WeightSource]) -> int:
    return max(math.prod(source.shape) for source in weight_map.values())


def _reference_bytes(options: ExportOptions, spec: ModelSpec) -> int:
    if not options.proves:
        return 0
    frames, size = options.recipe.frames, spec.vision.image_size
    visual = frames * spec.vision.tokens_per_frame * spec.text.hidden_size
    return 4 * (frames * 3 * size * size + visual + 2 * options.new_tokens * spec.text.vocab_size)


def check_plan(plan: Plan, output: Path) -> None:
    """Compare a plan with the free disk and memory.

    Raises:
        VaExportError: the disk is too small, or the memory.
    """
    free = free_disk(output)
    if plan.disk > free:
        raise VaExportError(
            f"the bundle needs about {human(plan.disk)}, and {human(free)} are free on its disk",
            where=output,
            fix="free some space, or choose an --output on another disk",
        )
    available = psutil.virtual_memory().available
    if plan.memory > available:
        raise VaExportError(
            f"the export needs about {human(plan.memory)} of memory for {plan.memory_reason},"
            f" and {human(available)} are available",
            where="memory",
            fix="leave the proof out with --no-parity, export parts with --components or --num-decoder-layers, build no"
            " engines with --onnx-only, or use a larger machine",
        )


def free_disk(output: Path) -> int:
    """Free bytes on the disk that `output` is to lie on."""
    existing = Path(output).absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def human(size: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def describe(plan: Plan, output: Path) -> list[str]:
    """The plan as lines of text."""
    lines = [f"output        {output}"]
    lines += [f"  {human(file.bytes):>10}  {file.name}" for file in plan.files]
    lines.append(f"disk          {human(plan.disk)} of {human(free_disk(output))} free")
    available = human(psutil.virtual_memory().available)
    lines.append(f"peak memory   about {human(plan.memory)} ({plan.memory_reason}) of {available} available")
    return lines
