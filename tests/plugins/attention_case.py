"""One attention problem: random inputs in NumPy, its float64 answer, and its run on a kernel compiled for the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from va_export.native.anchored_attention_params import DTYPE_CODES, AnchoredAttentionParams, AttentionStrides

Array = NDArray[Any]
GUARD = 64  # elements before and after every buffer, which nobody may write
POISON = {2: 0x7FC1, 4: 0x7FC00001, 8: 0x7FF8000000000001}  # by element size: NaNs, unlikely integers


@dataclass(frozen=True)
class Case:
    """Sizes and options of one problem; `kv_length` None means that the input is absent."""

    q_len: int
    kv_len: int
    batch: int = 1
    query_heads: int = 2
    kv_heads: int = 1
    head_dim: int = 64
    value_head_dim: int | None = None
    dtype: str = "float32"
    is_causal: bool = True
    kv_length: tuple[int, ...] | None = None
    gains: str = "anchored"  # anchored | wide | zero | none
    packed_heads: bool = False  # memory as (batch, positions, heads, head_dim)
    shared_gains: bool = False  # one row of gains for the whole batch, with batch stride 0
    scale: float | None = None

    def __str__(self) -> str:
        shape = f"b{self.batch}h{self.query_heads}/{self.kv_heads}q{self.q_len}k{self.kv_len}d{self.head_dim}"
        width = f"v{self.value_head_dim}" if self.value_head_dim else ""
        length = "" if self.kv_length is None else "-len" + "_".join(map(str, self.kv_length))
        layout = "-packed" if self.packed_heads else ""
        layout += "-shared_gains" if self.shared_gains else ""
        layout += f"-scale{self.scale}" if self.scale else ""
        causal = "-causal" if self.is_causal else ""
        return f"{shape}{width}-{self.dtype}{causal}{length}-{self.gains}{layout}"


@dataclass
class Inputs:
    """Float64 arrays whose values the case's dtype holds exactly; key and value as (B, Hkv, Skv, D)."""

    query: Array
    key: Array
    value: Array
    key_log_gain: Array
    value_gain: Array


def scale_of(case: Case) -> float:
    return case.scale if case.scale is not None else case.head_dim**-0.5


def random_inputs(case: Case, seed: int = 0) -> Inputs:
    """Normal queries, keys and values; beyond kv_length, keys and values hold NaN, infinities and huge numbers."""
    rng = np.random.default_rng(seed)
    value_head_dim = case.value_head_dim or case.head_dim
    query = rng.standard_normal((case.batch, case.query_heads, case.q_len, case.head_dim))
    key = rng.standard_normal((case.batch, case.kv_heads, case.kv_len, case.head_dim))
    value = rng.standard_normal((case.batch, case.kv_heads, case.kv_len, value_head_dim))
    key_gain, value_gain = _gains(case, rng)
    if case.shared_gains:
        key_gain[:], value_gain[:] = key_gain[0], value_gain[0]
    with np.errstate(divide="ignore"):
        key_log_gain = np.log(key_gain).astype(np.float32).astype(np.float64)
    value_gain = value_gain.astype(np.float32).astype(np.float64)
    query, key, value = (as_float64(encode(x, case.dtype), case.dtype) for x in (query, key, value))
    for row, length in enumerate(case.kv_length or ()):
        beyond = max(length, 0)
        for array in (key, value):
            array[row, :, beyond:, ::3], array[row, :, beyond:, 1::3] = np.nan, np.inf
            array[row, :, beyond:, 2::3] = -np.inf
        key_log_gain[row, beyond:], value_gain[row, beyond:] = np.nan, np.inf
    return Inputs(query, key, value, key_log_gain, value_gain)


def _gains(case: Case, rng: np.random.Generator) -> tuple[Array, Array]:
    shape = (case.batch, case.kv_len)
    if case.gains == "none":
        return np.ones(shape), np.ones(shape)
    if case.gains == "zero":  # a third of the keys, and every key of the last row
        key_gain = rng.uniform(0.5, 2.0, shape) * (rng.random(shape) > 1 / 3)
        key_gain[-1] = 0.0
        return key_gain, rng.uniform(0.5, 2.0, shape)
    if case.gains == "wide":
        return 10 ** rng.uniform(-6, 4, shape), 10 ** rng.uniform(-6, 4, shape)
    score = rng.random(shape) * (rng.random(shape) < 0.5)  # InternVL2-8B's factors on half of the keys
    return 1 + 9.5 * score, 1 + 2.5 * score


def reference(case: Case, inputs: Inputs) -> tuple[Array, Array]:
    """The op's definition in float64, row by row: the output, and for each number the sum of its absolute terms."""
    group = case.query_heads // case.kv_heads
    shape = (*inputs.query.shape[:3], inputs.value.shape[3])
    out, magnitude = np.zeros(shape), np.zeros(shape)
    for b, h, i in np.ndindex(shape[:3]):
        length = case.kv_len if case.kv_length is None else min(max(case.kv_length[b], 0), case.kv_len)
        visible = min(length, max(0, i + length - case.q_len + 1)) if case.is_causal else length
        key = inputs.key[b, h // group, :visible]
        value = inputs.value[b, h // group, :visible]
        logits = scale_of(case) * key @ inputs.query[b, h, i] + inputs.key_log_gain[b, :visible]
        if visible == 0 or np.all(np.isneginf(logits)):
            continue
        weights = np.exp(logits - logits.max())
        weights = weights / weights.sum() * inputs.value_gain[b, :visible]
        out[b, h, i], magnitude[b, h, i] = weights @ value, weights @ np.abs(value)
    return out, magnitude


def encode(values: Array, dtype: str) -> Array:
    """Float64 to the dtype's bits, rounding to nearest even; bfloat16 as uint16."""
    if dtype != "bfloat16":
        return values.astype(dtype)
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> np.uint64(16) & np.uint64(1))) >> np.uint64(16)
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def as_float64(bits: Array, dtype: str) -> Array:
    """The inverse of `encode`."""
    if dtype != "bfloat16":
        return bits.astype(np.float64)
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)


class Guarded:
    """A copy of an array between two guard zones; (B, H, S, D) arrays optionally in memory as (B, S, H, D)."""

    def __init__(self, array: Array, packed_heads: bool = False) -> None:
        stored = np.ascontiguousarray(array.swapaxes(1, 2) if packed_heads else array)
        self.memory = np.empty(stored.size + 2 * GUARD, stored.dtype)
        self.words = self.memory.view(f"u{stored.itemsize}")
        self.words[:] = POISON[stored.itemsize]
        body = self.memory[GUARD:-GUARD].reshape(stored.shape)
        body[...] = stored
        self.view = body.swapaxes(1, 2) if packed_heads else body
        self.before = self.words.copy()

    @property
    def address(self) -> int:
        return self.view.ctypes.data

    def strides(self) -> AttentionStrides:
        return AttentionStrides(*(stride // self.view.itemsize for stride in self.view.strides[:3]))

    def assert_guards_intact(self, whole: bool) -> None:
        """The guard zones are as they were; with `whole`, the array too."""
        changed = np.flatnonzero(self.words != self.before)
        inside = (changed >= GUARD) & (changed < self.words.size - GUARD)
        assert changed.size == 0 if whole else np.all(inside), "memory was written that is no output"


Launch = Callable[[AnchoredAttentionParams], int]


def launcher(library: ctypes.CDLL, schedule: int = 0, has_workspace: bool = False) -> Launch:
    """The C interface of a kernel compiled for the CPU, its threads taken in the order of `schedule`."""

    def launch(params: AnchoredAttentionParams) -> int:
        library.simt_set_schedule(schedule)
        if not has_workspace:
            return int(library.va_anchored_attention_launch(ctypes.byref(params), None))
        size = library.va_anchored_attention_workspace_bytes(ctypes.byref(params))
        workspace = Guarded(np.full(size // 4, np.nan, np.float32))
        params.workspace, params.workspace_bytes = workspace.address, size
        status = int(library.va_anchored_attention_launch(ctypes.byref(params), None))
        workspace.assert_guards_intact(whole=False)
        return status

    return launch


def run_on_host(launch: Launch, case: Case, inputs: Inputs) -> Array:
    """The output as float64, after checking that the launch wrote its output buffer and nothing else."""
    tensors = [
        Guarded(encode(array, case.dtype), case.packed_heads) for array in (inputs.query, inputs.key, inputs.value)
    ]
    gain_rows = 1 if case.shared_gains else case.batch
    vectors = [Guarded(array[:gain_rows].astype(np.float32)) for array in (inputs.key_log_gain, inputs.value_gain)]
    lengths = None if case.kv_length is None else Guarded(np.array(case.kv_length, np.int64))
    out_shape = (*inputs.query.shape[:3], inputs.value.shape[3])
    out = Guarded(encode(np.full(out_shape, np.nan), case.dtype), case.packed_heads)
    params = AnchoredAttentionParams(
        query=tensors[0].address,
        key=tensors[1].address,
        value=tensors[2].address,
        key_log_gain=vectors[0].address,
        value_gain=vectors[1].address,
        kv_length=None if lengths is None else lengths.address,
        out=out.address,
        batch=case.batch,
        query_heads=case.query_heads,
        kv_heads=case.kv_heads,
        q_len=case.q_len,
        kv_len=case.kv_len,
        head_dim=case.head_dim,
        value_head_dim=out_shape[3],
        query_strides=tensors[0].strides(),
        key_strides=tensors[1].strides(),
        value_strides=tensors[2].strides(),
        out_strides=out.strides(),
        key_log_gain_batch_stride=0 if case.shared_gains else case.kv_len,
        value_gain_batch_stride=0 if case.shared_gains else case.kv_len,
        scale=scale_of(case),
        is_causal=int(case.is_causal),
        dtype=DTYPE_CODES[case.dtype],
    )
    assert launch(params) == 0
    for buffer in (*tensors, *vectors, *([lengths] if lengths else [])):
        buffer.assert_guards_intact(whole=True)
    out.assert_guards_intact(whole=False)
    return as_float64(np.ascontiguousarray(out.view), case.dtype)
