"""The attention problems of the self-test: which there are, their numbers, and their answers in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from va_export.native.kernels import DECODE, Phase
from va_export.native.selftest.documents import AttentionShape

Array = np.ndarray[Any, Any]
DTYPES: dict[str, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
GAINS = ("anchored", "none", "wide", "zero")
# Around the edges of tiles of 32, 64 and 128 keys, two rows of a batch at a time; the last is the whole cache.
_LENGTHS = ((129, 1), (63, 128), (64, 127), (65, None))
_SMALL_CACHE = 193
_ROWS = {"decode": (1, 2, 16), "prefill": (17, 127, 128, 129)}
_WIDTHS = (64, 80, 96, 128)  # for each of which, and what lies between, there is code of its own
_LARGEST_CACHE, _MOST_ROWS = 8192, 2048


@dataclass(frozen=True)
class AttentionCase:
    """Sizes and options of one problem; `kv_length` of each row of the batch."""

    q_len: int
    kv_len: int
    query_heads: int
    kv_heads: int
    head_dim: int
    value_head_dim: int
    dtype: str
    kv_length: tuple[int, ...]
    gains: str = "anchored"
    is_causal: bool = True

    def __str__(self) -> str:
        valid = ",".join(map(str, self.kv_length))
        heads = f"{self.query_heads}/{self.kv_heads} heads of {self.head_dim}"
        causal = "causal" if self.is_causal else "not causal"
        return f"q_len {self.q_len}, kv_length {valid} of {self.kv_len}, {heads}, gains {self.gains}, {causal}"

    @property
    def scale(self) -> float:
        """As models have it."""
        return float(self.head_dim**-0.5)


@dataclass(frozen=True)
class AttentionNumbers:
    """The arrays of a case, (B, H, S, D) in its dtype and (B, Skv) in float32."""

    query: Array
    key: Array
    value: Array
    key_log_gain: Array
    value_gain: Array


def small_cases(phase: Phase, shape: AttentionShape) -> Iterator[AttentionCase]:
    """What is held against float64: the model's own heads (one group), then every width that has code of its own."""
    group = shape.query_heads // shape.kv_heads
    base = AttentionCase(
        *(1, _SMALL_CACHE, group, 1, shape.head_dim, shape.value_head_dim, shape.dtype),
        kv_length=(_SMALL_CACHE,),
    )
    for row, q_len in enumerate(_ROWS[phase.name]):
        for column, lengths in enumerate(_LENGTHS):
            yield replace(
                base,
                q_len=q_len,
                kv_length=tuple(length or _SMALL_CACHE for length in lengths),
                gains=GAINS[(row + column) % len(GAINS)],
                is_causal=(row + column // 2) % 2 == 0,
            )
    if shape.head_dim <= _WIDTHS[-1]:
        for width in _WIDTHS:
            q_len = _ROWS[phase.name][-1]
            yield replace(base, q_len=q_len, head_dim=width, value_head_dim=width, kv_length=(_SMALL_CACHE,))


def large_case(phase: Phase, shape: AttentionShape) -> AttentionCase:
    """What is held against the plain kernel, repeated, captured and timed: all heads, a long cache, a prompt that fills
    it as far as the tuned length goes."""
    kv_len = min(shape.capacity, _LARGEST_CACHE)
    q_len = 1 if phase == DECODE else max(17, min(shape.tuned_length, kv_len, _MOST_ROWS))
    heads = (shape.query_heads, shape.kv_heads, shape.head_dim, shape.value_head_dim)
    return AttentionCase(q_len, kv_len, *heads, shape.dtype, kv_length=(kv_len if phase == DECODE else q_len,))


def make_numbers(case: AttentionCase, seed: int) -> AttentionNumbers:
    """Normal numbers; beyond `kv_length` NaN and infinities."""
    rng = np.random.default_rng(seed)
    batch, dtype = len(case.kv_length), DTYPES[case.dtype]
    # A long cache repeats a sequence of prime length: no two tiles are alike, and it takes no time to draw.
    pool = rng.standard_normal(65_537).astype(np.float32).astype(dtype)

    def normal(*shape: int) -> Array:
        count = int(np.prod(shape))
        start = int(rng.integers(pool.size))
        return np.resize(np.roll(pool, start), count).reshape(shape)

    query = normal(batch, case.query_heads, case.q_len, case.head_dim)
    key = normal(batch, case.kv_heads, case.kv_len, case.head_dim)
    value = normal(batch, case.kv_heads, case.kv_len, case.value_head_dim)
    key_gain, value_gain = _gains(case.gains, (batch, case.kv_len), rng)
    with np.errstate(divide="ignore"):
        key_log_gain = np.log(key_gain).astype(np.float32)
    for row, length in enumerate(case.kv_length):
        for array in (key, value):
            array[row, :, length:, ::2], array[row, :, length:, 1::2] = np.nan, np.inf
        key_log_gain[row, length:], value_gain[row, length:] = np.nan, np.inf
    return AttentionNumbers(query, key, value, key_log_gain, value_gain.astype(np.float32))


def _gains(kind: str, shape: tuple[int, int], rng: np.random.Generator) -> tuple[Array, Array]:
    if kind == "none":
        return np.ones(shape), np.ones(shape)
    if kind == "wide":
        return 10 ** rng.uniform(-6, 4, shape), 10 ** rng.uniform(-6, 4, shape)
    if kind == "zero":  # a third of the keys, and every key of the last row
        gain = rng.uniform(0.5, 2.0, shape) * (rng.random(shape) > 1 / 3)
        gain[-1] = 0.0
        return gain, rng.uniform(0.5, 2.0, shape)
    score = rng.random(shape) * (rng.random(shape) < 0.5)  # the paper's factors on half of the keys
    return 1 + 9.5 * score, 1 + 2.5 * score


def float64_answer(case: AttentionCase, numbers: AttentionNumbers) -> tuple[Array, Array]:
    """The op's definition: the output, and for each number the sum of its absolute terms."""
    group = case.query_heads // case.kv_heads
    shape = (*numbers.query.shape[:3], case.value_head_dim)
    out, magnitude = np.zeros(shape), np.zeros(shape)
    rows = np.arange(case.q_len)[:, None]
    for batch, length in enumerate(case.kv_length):
        seen = np.arange(length)[None, :] <= (rows + length - case.q_len if case.is_causal else length)
        bias = np.where(seen, numbers.key_log_gain[batch, :length].astype(np.float64), -np.inf)
        for head in range(case.query_heads):
            key, value = (
                array[batch, head // group, :length].astype(np.float64) for array in (numbers.key, numbers.value)
            )
            logits = case.scale * numbers.query[batch, head].astype(np.float64) @ key.T + bias
            top = logits.max(axis=1, keepdims=True)
            weights = np.exp(logits - np.where(np.isneginf(top), 0.0, top))
            total = weights.sum(axis=1, keepdims=True)
            weights = weights / np.where(total == 0.0, 1.0, total) * numbers.value_gain[batch, :length]
            out[batch, head], magnitude[batch, head] = weights @ value, weights @ np.abs(value)
    return out, magnitude
