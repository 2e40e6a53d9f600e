"""Checks of AnchoredAttention's kernels against float64; each gives a row of evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor

from va_export.anchor.attention import anchored_attention
from va_export.evidence.attention_cases import (
    AttentionCase,
    Problem,
    float64_answer,
    half_precision_math,
    make_problem,
)
from va_export.evidence.document import Row, check_row
from va_export.evidence.workplace import with_variable
from va_export.native.attention_tolerance import SMALLEST, tolerance

Attention = Callable[..., Tensor]

KERNEL_VARIABLE = "VA_EXPORT_ATTENTION_KERNEL"
KERNELS = ("simple", "tensor_core", "mma_sync")  # what the launcher may be told to take
HOPPER = (9, 0)
EAGER = "eager"  # the reference in PyTorch stands for the kernel where there is no GPU

# Of its root mean square against that of the same attention in plain float16.
MOST_OVER_MATH = 1.5
ENOUGH_NUMBERS = 4096  # for a mean that chance does not decide


def chosen_kernel(name: str) -> AbstractContextManager[None]:
    """Within the block the launcher takes this kernel where it serves the shape; it reads the variable every time."""
    return with_variable(KERNEL_VARIABLE, name)


def attention_on(device: str) -> Attention:
    """The library's kernel for "cuda"; the eager reference, which takes any device, for "cpu"."""
    if device == "cpu":
        return _eager
    from va_export.native.anchored_attention import anchored_attention_cuda

    return anchored_attention_cuda


def _eager(query: Tensor, key: Tensor, value: Tensor, *rest: Tensor | None, is_causal: bool) -> Tensor:
    key_log_gain, value_gain, kv_length = rest
    clamped = None if kv_length is None else kv_length.clamp(0, key.shape[2])
    return anchored_attention(query, key, value, key_log_gain, value_gain, clamped, is_causal=is_causal)


def check_cases(kernel: str, cases: Iterable[AttentionCase], device: str) -> Iterator[Row]:
    """Every case against float64 (and twice, for equal bits), and against plain float16 where that says something."""
    attention = attention_on(device)
    for seed, case in enumerate(cases):
        problem = make_problem(case, device, seed)
        name = f"{kernel}: {case}"
        bound = tolerance(case.dtype, rounds_weights=kernel not in ("simple", EAGER))
        numbers = {"shape": case.shape, "dtype": case.dtype, "variant": kernel}
        try:
            with chosen_kernel(kernel):
                actual = attention(*problem.inputs, is_causal=case.causal)
                again = attention(*problem.inputs, is_causal=case.causal)
            expected, magnitude = float64_answer(problem)
        except torch.cuda.OutOfMemoryError as error:
            yield check_row(name, False, message=f"not enough memory: {first_line(error)}", **numbers)
            continue
        error_found = ((actual.double() - expected).abs() / (magnitude + SMALLEST / bound)).max().item()
        if error_found != error_found or error_found == float("inf"):
            yield check_row(name, False, message="the output is not finite", **numbers)
            continue
        same = torch.equal(actual, again)
        message = None if same else "two runs on equal inputs differ"
        passed = same and error_found <= bound
        yield check_row(name, passed, max_rel_err=error_found, tolerance=bound, message=message, **numbers)
        if _is_comparable_to_math(case):
            yield _over_math(name, problem, actual, expected, numbers)


def _is_comparable_to_math(case: AttentionCase) -> bool:
    numbers = case.batch * case.query_heads * case.q_len * (case.value_head_dim or case.head_dim)
    ordinary = case.gains in ("anchored", "none") and case.kv_length is None
    return case.dtype == "float16" and ordinary and numbers >= ENOUGH_NUMBERS


def _over_math(name: str, problem: Problem, actual: Tensor, expected: Tensor, numbers: Row) -> Row:
    def root_mean_square(output: Tensor) -> float:
        return float((output.double() - expected).square().mean().sqrt())

    ratio = root_mean_square(actual) / max(root_mean_square(half_precision_math(problem)), 1e-30)
    passed = ratio <= MOST_OVER_MATH
    name = f"{name}: error over that of plain {numbers['dtype']}"
    return check_row(name, passed, max_rel_err=ratio, tolerance=MOST_OVER_MATH, **numbers)


def check_empty_rows(kernel: str, device: str) -> Iterator[Row]:
    """Queries that see no key give exactly 0, whatever lies in the keys' memory."""
    attention = attention_on(device)
    for q_len in (1, 16, 300):
        case = AttentionCase(q_len, 200, 2, kv_length=(0, 1))
        with chosen_kernel(kernel):
            output = attention(*make_problem(case, device).inputs, is_causal=True)
        blind = torch.cat([output[0].flatten(), output[1, :, : q_len - 1].flatten()])
        passed = not bool(blind.any()) and bool(output[1, :, -1].any())
        yield check_row(
            f"{kernel}: rows without a visible key are 0, q_len {q_len}",
            passed,
            shape=case.shape,
            dtype=case.dtype,
            variant=kernel,
        )


def check_determinism(kernel: str, cases: Iterable[AttentionCase], device: str, repeats: int) -> Iterator[Row]:
    """Equal bits in many runs, also where keys are split among blocks."""
    attention = attention_on(device)
    for case in cases:
        problem = make_problem(case, device)
        with chosen_kernel(kernel):
            first = attention(*problem.inputs, is_causal=True)
            equal = [torch.equal(attention(*problem.inputs, is_causal=True), first) for _ in range(repeats)]
        different = equal.count(False)
        message = f"{different} of {repeats} runs differ" if different else None
        numbers = {"shape": case.shape, "dtype": case.dtype, "variant": kernel}
        yield check_row(f"{kernel}: {repeats} runs of {case}", not different, message=message, **numbers)


def check_graph_capture(kernel: str) -> Iterator[Row]:
    """A captured launch reads its inputs anew at every replay, the lengths among them. Needs a GPU."""
    attention = attention_on("cuda")
    for case in (AttentionCase(1, 2048, 2, 32, 8, kv_length=(2048, 700)), AttentionCase(500, 500, 2)):
        problem, later = (make_problem(case, "cuda", seed) for seed in (0, 1))
        if case.kv_length is not None:
            later = make_problem(replace(case, kv_length=(1, 2047)), "cuda", 1)
        with chosen_kernel(kernel):
            expected = attention(*later.inputs, is_causal=True)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured = attention(*problem.inputs, is_causal=True)
        for target, source in zip(problem.inputs, later.inputs, strict=True):
            if target is not None and source is not None:
                target.copy_(source)
        graph.replay()
        torch.cuda.synchronize()
        passed = torch.equal(captured, expected)
        numbers = {"shape": case.shape, "dtype": case.dtype, "variant": kernel}
        yield check_row(f"{kernel}: CUDA graph of {case}", passed, **numbers)


def cuda_kernel(kernel: str, capability: tuple[int, int]) -> str:
    """The CUDA function of a prefill of ordinary size, by the launcher's name for it and the GPU."""
    if kernel == "tensor_core" and capability == HOPPER:
        return "hopper_attention_kernel"
    return "anchored_attention_kernel" if kernel == "simple" else "mma_attention_kernel"


def check_which_kernel_runs(kernel: str) -> Iterator[Row]:
    """The profiler's names of the CUDA kernels: an evidence of one kernel must not be measured on another."""
    problem = make_problem(AttentionCase(500, 500), "cuda")
    attention = attention_on("cuda")
    with chosen_kernel(kernel):
        attention(*problem.inputs, is_causal=True)
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            attention(*problem.inputs, is_causal=True)
            torch.cuda.synchronize()
    names = sorted({event.key for event in profile.key_averages()})
    ours = [name for name in names if cuda_kernel(kernel, torch.cuda.get_device_capability()) in name]
    message = ours[0] if ours else f"the profiler saw {', '.join(names) or 'no kernel'}"
    yield check_row(f"{kernel}: is the kernel that runs", bool(ours), message=message[:200], variant=kernel)


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
