"""Medians of what a GPU takes, by CUDA events."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Call = Callable[[], object]

# Far more than any L2 cache (H200: 50 MB), and long enough to write that the host is ahead of the GPU afterwards.
FLUSH_BYTES = 256 << 20
CYCLES_PER_SECOND = 2.0e9  # at least what GPUs clock: the wait for the host is rather too long than too short


@dataclass(frozen=True)
class Timing:
    """Microseconds of repeated runs."""

    samples_us: tuple[float, ...]

    @property
    def median_us(self) -> float:
        """The middle of the samples."""
        return statistics.median(self.samples_us)

    @property
    def range_us(self) -> list[float]:
        """[min, max]."""
        return [min(self.samples_us), max(self.samples_us)]


def time_cuda(
    calls: Sequence[Call],
    *,
    repeats: int = 30,
    warmup: int = 3,
    flush_cache: bool = True,
    budget_seconds: float = 5.0,
) -> Timing:
    """Time calls that queue work on the current CUDA stream, each between two events of its own.

    Before every run the L2 cache is overwritten and the GPU is kept busy for longer than the host takes to queue a
    call, so that neither a warm cache nor the host's own speed is in the figure: it is the work on the GPU.

    Args:
        calls: the same work on different inputs, taken in turn.
        repeats: timed runs; fewer, but at least three, where `budget_seconds` would be passed.
        warmup: runs of every call before the clock (compilation, choice of algorithm).
        flush_cache: overwrite the L2 cache before every run.
        budget_seconds: about how long the runs may take together, warmup aside.

    Raises:
        RuntimeError: PyTorch's own, where there is no GPU or a call fails.
    """
    import torch

    for call in calls:
        call()
    torch.cuda.synchronize()
    host_seconds, gpu_seconds = 0.0, 0.0
    for index in range(max(warmup, len(calls))):
        start = time.perf_counter()
        calls[index % len(calls)]()
        queued = time.perf_counter()
        torch.cuda.synchronize()
        host_seconds = max(host_seconds, queued - start)
        gpu_seconds = time.perf_counter() - start
    # A host that waits for the GPU (which is then part of the work) must not make the wait before it long.
    wait_cycles = int(min(2 * host_seconds + 50e-6, 5e-3) * CYCLES_PER_SECOND)
    each_seconds = gpu_seconds + wait_cycles / CYCLES_PER_SECOND + 1e-3
    repeats = max(3, min(repeats, int(budget_seconds / each_seconds)))
    flush = torch.empty(FLUSH_BYTES if flush_cache else 0, dtype=torch.uint8, device="cuda")
    events = []
    for index in range(repeats):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        flush.zero_()
        torch.cuda._sleep(wait_cycles)  # type: ignore[no-untyped-call]
        before.record()
        calls[index % len(calls)]()
        after.record()
        events.append((before, after))
    torch.cuda.synchronize()
    return Timing(tuple(1e3 * before.elapsed_time(after) for before, after in events))


def time_host(calls: Sequence[Call], *, repeats: int = 3, warmup: int = 1) -> Timing:
    """The same for calls that run on the CPU; for trying a script, not for evidence."""
    for call in list(calls)[:warmup]:
        call()
    samples = []
    for index in range(repeats):
        start = time.perf_counter()
        calls[index % len(calls)]()
        samples.append(1e6 * (time.perf_counter() - start))
    return Timing(tuple(samples))
