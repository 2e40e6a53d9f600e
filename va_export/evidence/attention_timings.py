"""Times of AnchoredAttention and its peers in one run, and the targets that they are held to."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from va_export.evidence.attention_cases import AttentionCase, make_problem
from va_export.evidence.attention_checks import EAGER, attention_on, chosen_kernel, first_line
from va_export.evidence.attention_peers import Maker, PeerInputs, decode_peers, prefill_peers
from va_export.evidence.document import Row
from va_export.evidence.timing import Timing, time_cuda, time_host

PREFILL, DECODE = "anchored_attention_prefill", "anchored_attention_decode"
OFF = "anchors off"  # the same kernel with gains of 1
BEST, BASE = "tensor_core", "mma_sync"
PREFILL_LENGTHS = (16384, 2048, 8192, 4096)  # what a short run must not miss comes first
DECODE_LENGTHS = (16384, 65536, 2048, 4096, 8192, 32768)
# A peer in float16 differs from ours by its own roundings, some of them of intermediate results: 32 units of 2^-11 of
# the largest number. What differs by more computes something else and is no peer.
MOST_DIFFERENCE = 32 * 2.0**-11
SETS = 2  # of inputs, taken in turn


def prefill_cases(tiny: bool) -> list[AttentionCase]:
    """Square and causal; head_dim 128 before 64, 32/8 heads before 28/4."""
    if tiny:
        return [AttentionCase(64, 64, 1, 4, 2, 64)]
    cases = [
        AttentionCase(length, length, 1, *heads, width)
        for width, heads in ((128, (32, 8)), (64, (32, 8)), (128, (28, 4)), (64, (28, 4)))
        for length in PREFILL_LENGTHS
    ]
    return [
        *cases,
        AttentionCase(16384, 16384, 1, 32, 8, 128, dtype="bfloat16"),
        AttentionCase(2048, 2048, 8, 32, 8, 128),
    ]


def decode_cases(tiny: bool) -> list[AttentionCase]:
    """One query over a full cache; then a cache of which little is in use; then a chunk of 16 queries."""
    if tiny:
        return [AttentionCase(1, 64, 1, 4, 2, 64, gains="none")]
    plain = {"gains": "none"}
    return [
        *(AttentionCase(1, length, 1, 32, 8, 128, **plain) for length in DECODE_LENGTHS),  # type: ignore[arg-type]
        AttentionCase(1, 65536, 1, 32, 8, 128, gains="none", kv_length=(2048,)),
        AttentionCase(1, 16384, 1, 32, 4, 128, gains="none"),
        AttentionCase(1, 16384, 1, 28, 4, 128, gains="none"),
        AttentionCase(1, 16384, 1, 32, 8, 64, gains="none"),
        AttentionCase(1, 16384, 8, 32, 8, 128, gains="none"),
        AttentionCase(1, 8192, 32, 32, 8, 128, gains="none"),
        AttentionCase(16, 16384, 1, 32, 8, 128),
    ]


def time_prefill(device: str, *, tiny: bool = False, deadline: float = float("inf")) -> Iterator[Row]:
    """A row for every case and kernel; peers stand in the row of the fastest kernel.

    Args:
        deadline: of `time.monotonic`; a case that has not begun by then is left out and its row says so.
    """
    for case in prefill_cases(tiny):
        kernels = [EAGER] if device == "cpu" else [BEST, BASE]
        if case.q_len == 2048 and not tiny:
            kernels.append("simple")
        for kernel in kernels:
            peers = prefill_peers() if kernel == kernels[0] else {}
            yield _row(PREFILL, case, kernel, device, peers, deadline)
        yield _row(PREFILL, replace(case, gains="none"), f"{kernels[0]}, {OFF}", device, {}, deadline)
        _free()


def time_decode(device: str, *, tiny: bool = False, deadline: float = float("inf")) -> Iterator[Row]:
    """The same for decode steps."""
    for case in decode_cases(tiny):
        kernel = EAGER if device == "cpu" else BEST
        has_peers = case.q_len == 1 and case.kv_length is None
        yield _row(DECODE, case, kernel, device, decode_peers() if has_peers else {}, deadline)
        _free()


def _row(op: str, case: AttentionCase, variant: str, device: str, peers: dict[str, Maker], deadline: float) -> Row:
    shape = {name: size for name, size in case.shape.items() if name != "kv_length"}
    if case.kv_length is not None:
        shape["kv_length"] = list(case.kv_length)
    row: Row = {"op": op, "variant": variant, "shape": shape, "dtype": case.dtype, "ours_us": None}
    row |= {"ours_range_us": None, "peers_us": {}, "peers_range_us": {}, "notes": {}}
    if time.monotonic() > deadline:
        row["notes"]["ours"] = "left out: the run's time was used up"
        return row
    attention, kernel = attention_on(device), variant.split(",")[0]
    problems = [make_problem(case, device, seed) for seed in range(SETS)]
    calls = [_call(attention, problem.inputs, case.causal) for problem in problems]
    with chosen_kernel(kernel):
        ours = _time(calls, device)
        output = calls[0]()
    row |= {"ours_us": ours.median_us, "ours_range_us": ours.range_us, "repeats": len(ours.samples_us)}
    row |= _rates(op, case, ours.median_us)
    inputs = [PeerInputs(*problem.inputs[:5]) for problem in problems]
    with_anchors, without = output, None
    for name, make in peers.items():
        if name.endswith("_plain") and without is None:
            neutral = torch.zeros_like(inputs[0].key_log_gain), torch.ones_like(inputs[0].value_gain)
            with chosen_kernel(kernel):
                without = attention(*problems[0].inputs[:3], *neutral, None, is_causal=case.causal)
        expected = without if name.endswith("_plain") else with_anchors
        assert expected is not None
        timing, note = _time_peer(make, inputs, expected, device, deadline)
        row["peers_us"][name] = None if timing is None else timing.median_us
        if timing is not None:
            row["peers_range_us"][name] = timing.range_us
        if note is not None:
            row["notes"][name] = note
    return row


def _call(attention: Callable[..., Tensor], inputs: tuple[Any, ...], causal: bool) -> Callable[[], Tensor]:
    return lambda: attention(*inputs, is_causal=causal)


def _time(calls: list[Callable[[], Tensor]], device: str) -> Timing:
    return time_host(calls) if device == "cpu" else time_cuda(calls, repeats=30, budget_seconds=2.0)


def _time_peer(
    make: Maker, inputs: list[PeerInputs], expected: Tensor, device: str, deadline: float
) -> tuple[Timing | None, str | None]:
    """The peer's time, or why there is none: it refuses the shape, or it computes something else than ours."""
    if time.monotonic() > deadline:
        return None, "left out: the run's time was used up"
    with warnings.catch_warnings(record=True) as reasons:  # PyTorch's own words on why a backend refuses
        warnings.simplefilter("always")
        try:
            calls = [make(one) for one in inputs]
            difference = (calls[0]().float() - expected.float()).abs().max() / expected.float().abs().max()
            if not difference <= MOST_DIFFERENCE:
                return None, f"computes another result: it differs by {float(difference):.3g} of the largest number"
            return _time(calls, device), None
        except Exception as error:  # refusals come as RuntimeError, those of PyTorch's compiler in many classes
            said = [str(reason.message).splitlines()[0] for reason in reasons][-3:]
            return None, f"{type(error).__name__}: {' | '.join([first_line(error), *said])}"


def _rates(op: str, case: AttentionCase, microseconds: float) -> Row:
    """TFLOP/s as the field counts them (half of the square where causal), or TB/s of the keys and values read."""
    if op == PREFILL:
        operations = 4 * case.batch * case.query_heads * case.q_len * case.kv_len * case.head_dim
        return {"ours_tflops": operations / (2 if case.causal else 1) / microseconds / 1e6}
    return {"ours_tb_per_s": kv_bytes(case.shape, case.dtype) / microseconds / 1e6}


def kv_bytes(shape: Row, dtype: str) -> int:
    """Bytes of the valid keys and values."""
    keys = sum(shape["kv_length"]) if "kv_length" in shape else shape["batch"] * shape["kv_len"]
    return int(2 * keys * shape["kv_heads"] * shape["head_dim"] * (4 if dtype == "float32" else 2))


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
