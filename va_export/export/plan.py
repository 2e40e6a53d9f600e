"""What a run will write and need, said before it starts, and checked."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from va_export.bundle.decoder_shards import DECODER
from va_export.bundle.manifest import bundle_files
from va_export.bundle.write import partial_path
from va_export.errors import VaExportError
from va_export.export.plan_time import duration, estimate_seconds
from va_export.export.shard_plan import EXPORT_BASE, ITEM_BYTES, ShardPlan, build_memory
from va_export.host_memory import available_memory
from va_export.models.component import ROLES, SCORE
from va_export.models.reference_memory import reference_memory
from va_export.runtime.backends.session_memory import RESIDENT_FACTOR, prefill_bytes

if TYPE_CHECKING:
    from va_export.export.recipe import ExportOptions
    from va_export.export.source import Model
    from va_export.models.family import WeightSource

_SMALL_FILES = 16 << 20
# Tokens of a prompt beside the visual ones: the line of a frame; the system message, the question and their frame.
_TEXT_A_FRAME, _TEXT = 8, 128
_BUFFERS, _PIECE = 2, 128 << 20  # of weights that are read, written and hashed (graph/weight_pieces.py)
_BLOCKS = 256 << 20  # what is read and converted at a time, in several threads
# Kernels for each target and no weights: 20 MB for the default targets of TensorRT-RTX 1.7, 25 MB with PCA (measured).
_SCORE_ENGINE = 32 << 20


@dataclass(frozen=True)
class PlannedFile:
    """One file of the bundle and its estimated size in bytes."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Plan:
    """Files, disk and peak memory (bytes) of one export, and about how long it takes.

    Attributes:
        shards: what is said about the decoder's shards; empty without a decoder.
        shards_were_asked: whether their number was given, not chosen here by the free memory.
        seconds: step → seconds.
        there: bytes that an earlier run of the same export left, which the disk need not have free again.
    """

    files: tuple[PlannedFile, ...]
    memory: int
    memory_reason: str
    shards: str = ""
    shards_were_asked: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)
    there: int = 0

    @property
    def disk(self) -> int:
        """Bytes that the bundle takes."""
        return sum(file.bytes for file in self.files)


def component_bytes(weight_map: Mapping[str, WeightSource], precision: str) -> dict[str, int]:
    """Bytes of each component's weights."""
    sizes: dict[str, int] = dict.fromkeys(ROLES, 0)
    for source in weight_map.values():
        sizes[source.component] += math.prod(source.shape) * ITEM_BYTES[precision]
    return sizes


def plan_export(
    options: ExportOptions,
    model: Model,
    flavors: Sequence[str],
    shards: ShardPlan,
    available: int | None = None,
) -> Plan:
    """Estimate an export from the shapes alone.

    Args:
        flavors: the TensorRT flavours that engines are built for; empty for ONNX only.
        available: bytes of memory, which decide whether the proof streams weights; default: what the machine has left.
    """
    sizes = component_bytes(model.weight_map, options.precision)
    weights = {
        name: size for name, size in sizes.items() if name in options.components and name != DECODER
    } | shards.sizes
    files = [PlannedFile(f"onnx/{name}.onnx.data", size) for name, size in weights.items()]
    files += [
        PlannedFile(f"engines/{flavor}/{name}.engine", size) for flavor in flavors for name, size in weights.items()
    ]
    files += [
        PlannedFile(f"engines/{flavor}/score.engine", _SCORE_ENGINE) for flavor in flavors if options.exports_score
    ]
    files.append(
        PlannedFile("graphs, plugin, tokenizer, reference, reports", _SMALL_FILES + _reference_bytes(options, model))
    )
    free = available_memory() if available is None else available
    piece = min(_largest(model.weight_map) * ITEM_BYTES[options.precision], _PIECE)
    candidates = {"writing the ONNX weights": _BUFFERS * piece + _BLOCKS}
    if flavors:
        largest = max(weights, key=lambda name: weights[name], default=SCORE)
        candidates[f"building the engine of {largest}"] = build_memory(weights.get(largest, 0))
    if options.proves:
        candidates |= _proof_candidates(options, model, weights, free)
    reason = max(candidates, key=lambda name: candidates[name])
    decoder_parameters = sizes[DECODER] // ITEM_BYTES[options.precision]
    said = f"{len(shards.shards)} ({shards.reason})" if shards.shards else ""
    left = partial_path(options.output.absolute()) / "bundle" if options.resume else None
    return Plan(
        tuple(files),
        EXPORT_BASE + candidates[reason],
        reason,
        said,
        options.decoder_shards is not None,
        estimate_seconds(options, model, weights, decoder_parameters, _prompt_tokens(options, model), len(flavors)),
        0 if left is None else sum(path.stat().st_blocks * 512 for _, path in bundle_files(left)),
    )


def _proof_candidates(
    options: ExportOptions,
    model: Model,
    weights: Mapping[str, int],
    available: int,
) -> dict[str, int]:
    """Memory of the proof's two halves. Each streams weights by itself where they do not fit; the plan follows."""
    prompt = _prompt_tokens(options, model)
    need = reference_memory(model.spec, model.weight_map, prompt, options.recipe.frames, options.new_tokens)
    streams = need.must_stream(available - EXPORT_BASE)
    candidates = {
        "the float32 reference, streamed layer by layer"
        if streams
        else "the float32 reference in PyTorch": need.streamed if streams else need.whole
    }
    if options.precision == "bf16":  # PyTorch runs it, whole
        return candidates | {"running the bundle": sum(weights.values()) + need.activations}
    activations = max(need.activations, prefill_bytes(model.spec.text.num_heads, prompt))
    whole = int(RESIDENT_FACTOR * sum(weights.values())) + activations
    if whole <= available - EXPORT_BASE:
        return candidates | {"running the bundle": whole}
    return candidates | {"running the bundle, weights mapped": 4 * _largest(model.weight_map) + activations}


def _prompt_tokens(options: ExportOptions, model: Model) -> int:
    frames = options.recipe.frames
    return min(model.visual_tokens(frames) + frames * _TEXT_A_FRAME + _TEXT, options.recipe.limits.max_input_len)


def _largest(weight_map: Mapping[str, WeightSource]) -> int:
    return max(math.prod(source.shape) for source in weight_map.values())


def _reference_bytes(options: ExportOptions, model: Model) -> int:
    """Frames as pixels and as bytes, visual tokens, and logits of both sides."""
    if not options.proves:
        return 0
    spec, frames = model.spec, options.recipe.frames
    pixels = frames * spec.vision.positions_per_frame * spec.vision.hidden_size
    visual = model.visual_tokens(frames) * spec.text.width_at(0)
    return 4 * (pixels + visual + 2 * options.new_tokens * spec.text.vocab_size)


def check_plan(plan: Plan, output: Path) -> None:
    """Compare a plan with the free disk and memory.

    Raises:
        VaExportError: the disk is too small, or the memory.
    """
    free = free_disk(output)
    needed = max(0, plan.disk - plan.there)
    if needed > free:
        raise VaExportError(
            f"the bundle needs about {human(needed)}, and {human(free)} are free on its disk",
            where=output,
            fix="free some space, or choose an --output on another disk",
        )
    available = available_memory()
    if plan.memory > available:
        raise VaExportError(
            f"the export needs about {human(plan.memory)} of memory for {plan.memory_reason},"
            f" and {human(available)} are available",
            where="memory",
            fix=("let --decoder-shards auto choose, " if plan.shards_were_asked else "")
            + "leave the proof out with --no-parity, export parts with --components or --num-decoder-layers, build no"
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


def describe_plan(plan: Plan, output: Path) -> list[str]:
    """The plan as lines of text."""
    lines = [f"output        {output}"]
    lines += [f"  {human(file.bytes):>10}  {file.name}" for file in plan.files]
    there = f", {human(plan.there)} of them written already" if plan.there else ""
    lines.append(f"disk          {human(plan.disk)}{there}, of {human(free_disk(output))} free")
    if plan.shards:
        lines.append(f"shards        {plan.shards}")
    available = human(available_memory())
    lines.append(f"peak memory   about {human(plan.memory)} ({plan.memory_reason}) of {available} available")
    if plan.seconds:
        steps = ", ".join(f"{step} {duration(seconds)}" for step, seconds in plan.seconds.items())
        lines.append(f"time          about {duration(sum(plan.seconds.values()))} on two cores: {steps}")
    return lines
