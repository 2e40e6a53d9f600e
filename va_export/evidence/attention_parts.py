"""The parts of the attention evidence, each small enough for a process of its own."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from va_export.evidence.attention_cases import AttentionCase, directed_cases, sampled_cases, tiny_cases
from va_export.evidence.attention_checks import (
    EAGER,
    KERNELS,
    check_cases,
    check_determinism,
    check_empty_rows,
    check_graph_capture,
    check_which_kernel_runs,
)
from va_export.evidence.attention_timings import time_decode, time_prefill
from va_export.evidence.document import Row
from va_export.evidence.plugin_checks import check_plugin

PARTS = ("checks", "plugin", "timings", "sanitized")
QUICK_SAMPLES = 40


def kernels_on(device: str) -> tuple[str, ...]:
    """What can be chosen there."""
    return (EAGER,) if device == "cpu" else KERNELS


def check_part(kernel: str, device: str, *, quick: bool) -> Iterator[tuple[str, Row]]:
    """Hundreds of shapes against float64, rows without keys, determinism, graph capture."""
    if device == "cpu":
        cases, repeated, repeats = tiny_cases(), [AttentionCase(7, 40)], 2
    else:
        cases = [*directed_cases(), *sampled_cases(QUICK_SAMPLES)] if quick else [*directed_cases(), *sampled_cases()]
        repeated = [AttentionCase(1, 4096, 2, 32, 8), AttentionCase(7, 2049), AttentionCase(777, 777)]
        repeats = 50
    rows: Iterable[Row] = chain(
        check_which_kernel_runs(kernel) if device == "cuda" else (),
        check_empty_rows(kernel, device),
        check_cases(kernel, cases, device),
        check_determinism(kernel, repeated, device, repeats),
        check_graph_capture(kernel) if device == "cuda" else (),
    )
    return (("checks", row) for row in rows)


def plugin_part(host: Path, library: Path) -> Iterator[tuple[str, Row]]:
    """The plugin object, with every kernel."""
    return (("checks", row) for kernel in KERNELS for row in check_plugin(host, library, kernel))


def timing_part(device: str, *, quick: bool, seconds: float) -> Iterator[tuple[str, Row]]:
    """Decode first: it is short, and a run that is out of time has it."""
    deadline = time.monotonic() + seconds
    tiny = quick or device == "cpu"
    rows = chain(time_decode(device, tiny=tiny, deadline=deadline), time_prefill(device, tiny=tiny, deadline=deadline))
    return (("timings", row) for row in rows)


def sanitized_part() -> Iterator[tuple[str, Row]]:
    """A few small launches of every kernel for a sanitizer to look into: ragged tiles, split keys, no valid key."""
    cases = [
        AttentionCase(130, 197, 2, 4, 1, 64, kv_length=(197, 40)),
        AttentionCase(65, 65, 1, 7, 1, 128, gains="zero"),
        AttentionCase(1, 517, 2, 8, 2, 128, kv_length=(517, 0)),
        AttentionCase(16, 300, 1, 4, 4, 80, dtype="bfloat16"),
        AttentionCase(33, 70, 1, 2, 1, 160, causal=False, packed=False),
    ]
    return (("checks", row) for kernel in KERNELS for row in check_cases(kernel, cases, "cuda"))
