"""One attention kernel on one GPU: whether it is right, and how long it takes."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

import numpy as np

from va_export.native.anchored_attention_params import DTYPE_CODES, AnchoredAttentionParams, AttentionStrides, bind
from va_export.native.attention_tolerance import SMALLEST, tolerance
from va_export.native.device import Array, Device
from va_export.native.kernels import DECODE, PREFILL, SIMPLE, Phase, select_kernel
from va_export.native.selftest.attention_cases import (
    DTYPES,
    AttentionCase,
    AttentionNumbers,
    float64_answer,
    large_case,
    make_numbers,
    small_cases,
)
from va_export.native.selftest.documents import AttentionShape

_GUARD = 4096  # bytes before and after what a launch writes
_POISON = 0xFF  # NaN in every type
_REPEATS, _TIMED, _WARM_UP = 20, 20, 2
_LAUNCHES = {DECODE.name: 8, PREFILL.name: 1}  # that are timed as one: a decode step is shorter than a launch


class WrongError(Exception):
    """A kernel failed a check; the text says which."""


@dataclass
class _Launch:
    """A problem on the GPU, its output and workspace between guard zones."""

    device: Device
    case: AttentionCase
    params: AnchoredAttentionParams
    numbers: AttentionNumbers
    _guarded: dict[str, tuple[int, int]] = field(default_factory=dict)  # address and size of what lies between

    @classmethod
    def of(cls, device: Device, case: AttentionCase, numbers: AttentionNumbers) -> _Launch:
        """Upload a problem."""
        batch = len(case.kv_length)
        sizes = {"batch": batch, "query_heads": case.query_heads, "kv_heads": case.kv_heads, "q_len": case.q_len}
        sizes |= {"kv_len": case.kv_len, "head_dim": case.head_dim, "value_head_dim": case.value_head_dim}

        def strides(heads: int, positions: int, width: int) -> AttentionStrides:
            return AttentionStrides(heads * positions * width, positions * width, width)

        params = AnchoredAttentionParams(
            **sizes,
            query=device.upload(numbers.query),
            key=device.upload(numbers.key),
            value=device.upload(numbers.value),
            key_log_gain=device.upload(numbers.key_log_gain),
            value_gain=device.upload(numbers.value_gain),
            kv_length=device.upload(np.array(case.kv_length, np.int64)),
            query_strides=strides(case.query_heads, case.q_len, case.head_dim),
            key_strides=strides(case.kv_heads, case.kv_len, case.head_dim),
            value_strides=strides(case.kv_heads, case.kv_len, case.value_head_dim),
            out_strides=strides(case.query_heads, case.q_len, case.value_head_dim),
            key_log_gain_batch_stride=case.kv_len,
            value_gain_batch_stride=case.kv_len,
            scale=case.scale,
            is_causal=int(case.is_causal),
            dtype=DTYPE_CODES[case.dtype],
        )
        launch = cls(device, case, params, numbers)
        out_bytes = batch * case.query_heads * case.q_len * case.value_head_dim * np.dtype(DTYPES[case.dtype]).itemsize
        params.out = launch._guard("output", out_bytes)
        if size := bind(device.library).va_anchored_attention_workspace_bytes(ctypes.byref(params)):
            params.workspace, params.workspace_bytes = launch._guard("workspace", size), size
        return launch

    def queue(self, stream: int = 0) -> None:
        """Launch once, on the first or second stream."""
        error = self.device.library.va_anchored_attention_launch(ctypes.byref(self.params), self.device.streams[stream])
        if error:
            raise WrongError(f"its launch was refused (CUDA error {error}): {self.case}")

    def result(self) -> Array:
        """The output, after all work, once nothing around it was written."""
        for name, (address, size) in self._guarded.items():
            for begin in (address - _GUARD, address + size):
                zone = self.device.read(begin, np.empty(_GUARD, np.uint8))
                if (zone != _POISON).any():
                    raise WrongError(f"it writes outside its {name}: {self.case}")
        case = self.case
        shape = (len(case.kv_length), case.query_heads, case.q_len, case.value_head_dim)
        out = np.empty(shape, DTYPES[case.dtype])
        self.device.read(self.params.out, out.view(np.uint8))
        return out

    def poison(self) -> None:
        """Fill the output with NaN."""
        address, size = self._guarded["output"]
        self.device.write(address, np.full(size, _POISON, np.uint8))

    def _guard(self, name: str, size: int) -> int:
        address = self.device.upload(np.full(size + 2 * _GUARD, _POISON, np.uint8)) + _GUARD
        self._guarded[name] = (address, size)
        return address


def check_attention(device: Device, phase: Phase, kernel: str, shape: AttentionShape) -> tuple[float, ...]:
    """Milliseconds of a launch, measured 20 times, of a kernel that is right.

    Raises:
        WrongError: it is not.
        VaExportError: CUDA refused something.
    """
    select_kernel(device.library, device.index, phase, kernel)
    for seed, case in enumerate(small_cases(phase, shape)):
        device.reset()
        numbers = make_numbers(case, seed)
        launch = _Launch.of(device, case, numbers)
        launch.queue()
        _hold(
            launch.result(),
            *float64_answer(case, numbers),
            tolerance(case.dtype, rounds_weights=kernel != SIMPLE),
            case,
        )
    device.reset()
    case = large_case(phase, shape)
    launch = _Launch.of(device, case, make_numbers(case, 0))
    launch.queue()
    first = launch.result()
    if kernel != SIMPLE:
        _hold_against_plain(launch, first, phase, kernel)
    _repeat(launch, first)
    _beside_another(launch, first)
    return _replay(launch, phase)


def _hold(actual: Array, expected: Array, magnitude: Array, bound: float, case: AttentionCase) -> None:
    error = np.abs(actual.astype(np.float64) - expected) / (magnitude + SMALLEST / bound)
    if not np.isfinite(error).all():
        raise WrongError(f"the output is not finite: {case}")
    if (most := float(error.max())) > bound:
        raise WrongError(f"an error of {most:.1e}, where {bound:.1e} is allowed: {case}")


def _hold_against_plain(launch: _Launch, actual: Array, phase: Phase, kernel: str) -> None:
    """The plain kernel, which float64 has vouched for, tells the answer, and with |value| the sum of absolute terms."""
    device, case = launch.device, launch.case
    select_kernel(device.library, device.index, phase, SIMPLE)
    launch.queue()
    expected = launch.result().astype(np.float64)
    device.write(launch.params.value, np.abs(launch.numbers.value))
    launch.queue()
    magnitude = launch.result().astype(np.float64)
    device.write(launch.params.value, launch.numbers.value)
    select_kernel(device.library, device.index, phase, kernel)
    both = tolerance(case.dtype, rounds_weights=True) + tolerance(case.dtype, rounds_weights=False)
    _hold(actual, expected, magnitude, both, case)


def _repeat(launch: _Launch, first: Array) -> None:
    for _ in range(_REPEATS):
        launch.poison()
        launch.queue()
        if launch.result().tobytes() != first.tobytes():
            raise WrongError(f"two runs on equal inputs differ: {launch.case}")


def _beside_another(launch: _Launch, first: Array) -> None:
    """The same in two streams at once, each with an output and a workspace of its own."""
    device = launch.device
    other = _Launch.of(device, launch.case, launch.numbers)
    launch.poison()
    for _ in range(4):
        launch.queue(0)
        other.queue(1)
    for stream in device.streams:
        device.synchronize(stream)
    if launch.result().tobytes() != first.tobytes() or other.result().tobytes() != first.tobytes():
        raise WrongError(f"its result changes with another stream beside it: {launch.case}")


def _replay(launch: _Launch, phase: Phase) -> tuple[float, ...]:
    """A graph that was captured with another kv_length gives the result of the one that is there; then it is timed."""
    device, full = launch.device, np.array(launch.case.kv_length, np.int64)
    count = _LAUNCHES[phase.name]

    def queue() -> None:
        for _ in range(count):
            launch.queue()

    device.write(launch.params.kv_length, full - 1)
    graph = device.capture(queue)
    expected = _direct(launch, full)
    launch.poison()
    device.replay(graph)
    if launch.result().tobytes() != expected.tobytes():
        raise WrongError(f"a CUDA graph of it does not read kv_length anew: {launch.case}")
    times = [device.replay(graph) / count for _ in range(_WARM_UP + _TIMED)]
    device.free_graph(graph)
    return tuple(times[_WARM_UP:])


def _direct(launch: _Launch, kv_length: Array) -> Array:
    launch.device.write(launch.params.kv_length, kv_length)
    launch.queue()
    return launch.result()
