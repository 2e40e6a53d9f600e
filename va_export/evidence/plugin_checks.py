"""Checks of the actual plugin object on a GPU: serialised, cloned, attached, enqueued within its declared workspace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from va_export.evidence.attention_cases import AttentionCase, Problem, float64_answer, make_problem
from va_export.evidence.attention_checks import chosen_kernel
from va_export.evidence.document import Row, check_row
from va_export.evidence.plugin_host import Plugin, PluginHost
from va_export.native.anchored_attention_params import DTYPE_CODES, AnchoredAttentionParams
from va_export.native.attention_tolerance import SMALLEST, tolerance

GUARD_BYTES = 4096
GUARD_VALUE = 0xA5

CASES = (
    AttentionCase(111, 111, 2, 8, 2, 128, kv_length=(111, 50), packed=False),
    AttentionCase(989, 2049, 1, 7, 1, 64, packed=False),
    AttentionCase(1, 4096, 2, 32, 8, 128, kv_length=(4096, 33), packed=False),
    AttentionCase(16, 989, 1, 28, 4, 128, dtype="bfloat16", packed=False),
    AttentionCase(65, 65, 1, 4, 4, 80, dtype="float32", packed=False),
    AttentionCase(300, 300, 2, 8, 2, 96, causal=False, packed=False),
    AttentionCase(40, 500, 3, 8, 2, 256, kv_length=(-7, 10_000, 250), packed=False),
)


class GuardedBytes:
    """Device memory between two zones that nobody may write."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = torch.full((size + 2 * GUARD_BYTES,), GUARD_VALUE, dtype=torch.uint8, device="cuda")

    @property
    def address(self) -> int:
        """Of the first byte between the guards."""
        return self.memory.data_ptr() + GUARD_BYTES

    def as_tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """What lies between the guards."""
        return self.memory[GUARD_BYTES : GUARD_BYTES + self.size].view(dtype).reshape(shape)

    def is_intact(self) -> bool:
        """Whether both guards are as they were."""
        zones = torch.cat([self.memory[:GUARD_BYTES], self.memory[-GUARD_BYTES:]])
        return bool((zones == GUARD_VALUE).all())


def check_plugin(host: Path, library: Path, kernel: str) -> Iterator[Row]:
    """Each case through a context of a plugin that was serialised; then all of them through two contexts in turn."""
    plugins = PluginHost(host, library)
    for case in CASES:
        problem = make_problem(case, "cuda")
        with chosen_kernel(kernel):
            output, fault = _enqueue(plugins, _loaded(plugins, case).attach(), case, problem)
        yield _row(f"plugin, {kernel}: enqueue of {case}", kernel, case, problem, output, fault)
    with chosen_kernel(kernel):
        yield from _contexts_in_turn(plugins, kernel)


def _contexts_in_turn(plugins: PluginHost, kernel: str) -> Iterator[Row]:
    """Contexts of one plugin on two streams: what one was told of its shapes must not reach the other."""
    cases = (CASES[0], CASES[2])
    loaded = _loaded(plugins, cases[0])
    work = [(case, make_problem(case, "cuda"), loaded.attach(), torch.cuda.Stream()) for case in cases]  # type: ignore[no-untyped-call]
    del loaded
    for turn in range(2):
        for index, (case, problem, context, stream) in enumerate(work):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                output, fault = _enqueue(plugins, context, case, problem)
            torch.cuda.current_stream().wait_stream(stream)
            name = f"plugin, {kernel}: context {index + 1} of 2, turn {turn + 1}"
            yield _row(name, kernel, case, problem, output, fault)


def _loaded(plugins: PluginHost, case: AttentionCase) -> Plugin:
    plugin = plugins.make(AnchoredAttentionParams(scale=case.head_dim**-0.5, is_causal=int(case.causal)))
    if plugin is None:
        raise RuntimeError(f"the creator refused: {plugins.log()}")
    return plugin


def _enqueue(plugins: PluginHost, context: Plugin, case: AttentionCase, problem: Problem) -> tuple[Tensor, str | None]:
    """The output, and what was wrong beside it."""
    query, key, value, key_log_gain, value_gain, kv_length = problem.inputs
    batch, heads, q_len, head_dim = query.shape
    shape = (batch, heads, q_len, value.shape[3])
    out = GuardedBytes(query.new_empty(shape).nbytes)
    params = AnchoredAttentionParams(
        query=query.data_ptr(), key=key.data_ptr(), value=value.data_ptr(),
        key_log_gain=key_log_gain.data_ptr(), value_gain=value_gain.data_ptr(),
        kv_length=None if kv_length is None else kv_length.data_ptr(), out=out.address,
        batch=batch, query_heads=heads, kv_heads=key.shape[1], q_len=q_len, kv_len=key.shape[2],
        head_dim=head_dim, value_head_dim=value.shape[3], dtype=DTYPE_CODES[case.dtype],
    )  # fmt: skip
    workspace = GuardedBytes(context.workspace_bytes(params))
    params.workspace = workspace.address if workspace.size else None
    status = context.enqueue(params, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    faults = [] if status == 0 else [f"enqueue gave {status}: {plugins.log().strip()}"]
    faults += [
        f"{name}'s guards were written"
        for name, part in (("out", out), ("workspace", workspace))
        if not part.is_intact()
    ]
    return out.as_tensor(shape, query.dtype), "; ".join(faults) or None


def _row(name: str, kernel: str, case: AttentionCase, problem: Problem, output: Tensor, fault: str | None) -> Row:
    expected, magnitude = float64_answer(problem)
    bound = tolerance(case.dtype, rounds_weights=kernel != "simple")
    error = ((output.double() - expected).abs() / (magnitude + SMALLEST / bound)).max().item()
    numbers = {"shape": case.shape, "dtype": case.dtype, "variant": kernel}
    if error != error or error == float("inf"):
        return check_row(name, False, message=fault or "the output is not finite", **numbers)
    passed = fault is None and error <= bound
    return check_row(name, passed, max_rel_err=error, tolerance=bound, message=fault, **numbers)
