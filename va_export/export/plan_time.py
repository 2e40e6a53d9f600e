"""About how long an export takes, for a person to decide between a coffee and a night.

All rates are of two cores with AVX-512 and a disk of 0.5 GB/s; other machines are faster or slower by their cores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from va_export.proof.latency import BUDGET_SECONDS, WARMUP

if TYPE_CHECKING:
    from va_export.export.recipe import ExportOptions
    from va_export.export.source import Model

# Bytes a second, SHA-256 of the checkpoint and of what is written included.
_STREAM_RATE = 0.4e9
_BUILD_RATE = 0.02e9  # of an engine's weights, for four targets: TensorRT-RTX 1.7
_TRACE_SECONDS = 20  # to trace and check one component, imports included
# What PyTorch and ONNX Runtime compute in float32, in operations a second, and weights a second where each is used
# once: read, converted to float32, multiplied. With these, the proof of 8B on one frame, which took 298 s
# (engines/evidence/exports/proved-8b.json), is told as 6 minutes.
_COMPUTE_RATE, _WEIGHT_RATE = 0.2e12, 0.7e9
# The paper's clips take 300 to 1000 iterations of the self-expression.
_ADMM_ITERATIONS = 600
# The score's graph in ONNX Runtime has dense products where the host's solver skips zeros.
_GRAPH_FACTOR = 4


def estimate_seconds(
    options: ExportOptions,
    model: Model,
    weights: Mapping[str, int],
    decoder_parameters: int,
    prompt_tokens: int,
    n_flavors: int,
) -> dict[str, float]:
    """Step → seconds.

    Args:
        weights: bytes of every component.
        decoder_parameters: their number in the whole decoder, the output matrix included.
        prompt_tokens: of the question that the proof asks.
        n_flavors: TensorRT flavours that engines are built for.
    """
    total = sum(weights.values())
    seconds = {"writing ONNX": len(weights) * _TRACE_SECONDS + total / _STREAM_RATE}
    if n_flavors:
        seconds["building engines"] = n_flavors * total / _BUILD_RATE
    if options.proves:
        seconds["proving"] = _TRACE_SECONDS + _proof_seconds(options, model, decoder_parameters, prompt_tokens)
    return seconds


def _proof_seconds(options: ExportOptions, model: Model, decoder: int, prompt_tokens: int) -> float:
    """Reference, parity and latency; a question is a prefill and the steps after it."""
    question = 2 * decoder * prompt_tokens / _COMPUTE_RATE + (options.new_tokens - 1) * decoder / _WEIGHT_RATE
    score = _score_seconds(options, model)
    runs = 1 if options.precision == "bf16" else 2
    reference = 2 * question + 2 * score  # float64
    # Forced with anchors and without, free with anchors; the host's score thrice, the graph's once.
    parity = runs * (3 * question + (3 + _GRAPH_FACTOR) * score)
    rounds = options.latency_iterations and WARMUP + options.latency_iterations
    latency = sum(
        min(rounds * once, max(2 * once, BUDGET_SECONDS))  # a warm-up and a measurement at the least
        for once in (question + score, question)
        if rounds
    )
    return reference + parity + latency


def _score_seconds(options: ExportOptions, model: Model) -> float:
    tokens = model.visual_tokens(options.recipe.frames)
    rank = options.recipe.score.pca_rank or min(tokens, model.spec.text.hidden_size)
    return _ADMM_ITERATIONS * 2 * tokens * tokens * rank / _COMPUTE_RATE


def duration(seconds: float) -> str:
    """Seconds as a person says them; estimates have no more than two digits."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
