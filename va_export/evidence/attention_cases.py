"""AnchoredAttention problems for a GPU: sizes, random tensors, and their answers in float64."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from va_export.anchor.attention import anchored_attention

LENGTHS = (1, 17, 111, 989, 2047, 2048, 2049)
HEADS = ((4, 4), (8, 2), (7, 1), (8, 1), (14, 2))  # groups of 1, 4, 7 (twice) and 8
HEAD_DIMS = (64, 80, 96, 128, 160, 256)
DTYPES = ("float16", "bfloat16", "float32")
GAINS = ("anchored", "none", "wide", "zero")
SAMPLED_CASES = 300
CHUNKS = (1, 2, 3, 4, 5, 8, 11, 15, 16)  # queries of a decode step


@dataclass(frozen=True)
class AttentionCase:
    """Sizes and options of one problem; `kv_length` None means that every key is valid."""

    q_len: int
    kv_len: int
    batch: int = 1
    query_heads: int = 8
    kv_heads: int = 2
    head_dim: int = 128
    value_head_dim: int | None = None
    dtype: str = "float16"
    causal: bool = True
    kv_length: tuple[int, ...] | None = None
    gains: str = "anchored"  # anchored: the paper's | none | wide: 1e-6 … 1e4 | zero: a third of the keys has none
    packed: bool = True  # query and output in memory as (batch, positions, heads, head_dim), as projections give them

    def __str__(self) -> str:
        width = "" if self.value_head_dim is None else f"v{self.value_head_dim}"
        heads = f"{self.query_heads}/{self.kv_heads}"
        valid = "" if self.kv_length is None else " valid " + ",".join(map(str, self.kv_length))
        options = ("causal" if self.causal else "full") + ("" if self.packed else " unpacked")
        sizes = f"b{self.batch} h{heads} q{self.q_len} k{self.kv_len} d{self.head_dim}{width}"
        return f"{sizes} {self.dtype} {options} gains {self.gains}{valid}"

    @property
    def shape(self) -> dict[str, Any]:
        """As evidence names it."""
        names = ("batch", "query_heads", "kv_heads", "q_len", "kv_len", "head_dim", "causal")
        shape: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.value_head_dim is not None:
            shape["value_head_dim"] = self.value_head_dim
        if self.kv_length is not None:
            shape["kv_length"] = list(self.kv_length)
        return shape


@dataclass
class Problem:
    """The tensors of a case, on one device; key and value hold NaN and infinities beyond `kv_length`."""

    query: Tensor
    key: Tensor
    value: Tensor
    key_log_gain: Tensor
    value_gain: Tensor
    kv_length: Tensor | None
    causal: bool = field(default=True)

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """In the order of `anchored_attention`."""
        return self.query, self.key, self.value, self.key_log_gain, self.value_gain, self.kv_length


def sampled_cases(count: int = SAMPLED_CASES, lengths: tuple[int, ...] = LENGTHS) -> list[AttentionCase]:
    """Random combinations of all axes, always the same; every value of every axis comes up equally often."""
    choose = random.Random(0)

    def column(values: Any) -> list[Any]:
        repeated = list(values) * (count // len(values) + 1)
        choose.shuffle(repeated)
        return repeated[:count]

    columns = (lengths, lengths, HEADS, HEAD_DIMS, DTYPES, (True, False), (1, 1, 2, 3), GAINS, (True, True, False))
    cases = []
    for q_len, kv_len, heads, width, dtype, causal, batch, gains, packed in zip(*map(column, columns), strict=True):
        valid = None if batch == 1 else tuple(choose.choice((kv_len, choose.randint(0, kv_len))) for _ in range(batch))
        query_heads, kv_heads = heads
        sizes = (q_len, kv_len, batch, query_heads, kv_heads, width, None)
        cases.append(AttentionCase(*sizes, dtype, causal, valid, gains, packed))
    return list(dict.fromkeys(cases))


def directed_cases() -> list[AttentionCase]:
    """What a random choice would miss: decode steps, chunks, lengths out of range, rows and batches without a key."""
    decode = [
        AttentionCase(q_len, kv_len, 2, *heads, width, dtype=dtype, kv_length=(kv_len, kv_len // 3))
        for q_len, kv_len, heads, width, dtype in (
            *((q_len, 2049, (8, 2), 128, "float16") for q_len in CHUNKS),
            *((q_len, 989, (28, 4), 64, "bfloat16") for q_len in CHUNKS),
            *((1, kv_len, (32, 8), 128, "float16") for kv_len in (1, 63, 64, 65, 4096, 16384)),
            *((1, 2047, heads, 96, "float16") for heads in HEADS),
        )
    ]
    others = [
        AttentionCase(64, 500, 3, kv_length=(-5, 10_000, 250)),  # clamped to [0, kv_len]
        AttentionCase(1, 500, 3, kv_length=(0, 10_000, 1)),
        AttentionCase(200, 300, 4, kv_length=(0, 1, 100, 300)),  # rows that see nothing
        AttentionCase(200, 300, 2, kv_length=(0, 0), dtype="bfloat16"),
        AttentionCase(989, 111),  # more queries than keys: the first see nothing
        AttentionCase(989, 111, causal=False),
        AttentionCase(300, 300, value_head_dim=64),
        AttentionCase(300, 300, head_dim=64, value_head_dim=128),
        AttentionCase(129, 257, head_dim=40, value_head_dim=72),
        AttentionCase(129, 257, head_dim=33, value_head_dim=7),  # no multiple of eight
        *(AttentionCase(200, 777, gains=gains, causal=causal) for gains in GAINS for causal in (True, False)),
        *(AttentionCase(1, 777, gains=gains) for gains in GAINS),
        *(AttentionCase(4096, 4096, 1, 4, 1, width) for width in (64, 128)),  # enough tiles for every scheduler
    ]
    return list(dict.fromkeys([*decode, *others]))


def tiny_cases() -> list[AttentionCase]:
    """A few of either kind at the size of a test."""
    small = sampled_cases(12, lengths=(1, 5, 17))
    return [*small, AttentionCase(3, 9, 3, kv_length=(0, 100, 4)), AttentionCase(70, 70, head_dim=64)]


def make_problem(case: AttentionCase, device: str, seed: int = 0) -> Problem:
    """Normal queries, keys and values, made where they are used: on a device, a seed always gives the same."""
    generator = torch.Generator(device).manual_seed(seed)
    dtype = getattr(torch, case.dtype)

    def normal(heads: int, length: int, width: int, packed: bool) -> Tensor:
        shape = (case.batch, length, heads, width) if packed else (case.batch, heads, length, width)
        tensor = torch.randn(shape, generator=generator, device=device).to(dtype)
        return tensor.transpose(1, 2) if packed else tensor

    value_head_dim = case.value_head_dim or case.head_dim
    query = normal(case.query_heads, case.q_len, case.head_dim, case.packed)
    key = normal(case.kv_heads, case.kv_len, case.head_dim, False)
    value = normal(case.kv_heads, case.kv_len, value_head_dim, False)
    key_gain, value_gain = _gains(case, generator)
    key_log_gain = key_gain.double().log().float()
    for row, length in enumerate(case.kv_length or ()):
        beyond = max(length, 0)
        for tensor in (key, value):
            tensor[row, :, beyond:, 0::3], tensor[row, :, beyond:, 1::3] = float("nan"), float("inf")
            tensor[row, :, beyond:, 2::3] = float("-inf")
        key_log_gain[row, beyond:], value_gain[row, beyond:] = float("nan"), float("inf")
    lengths = None if case.kv_length is None else torch.tensor(case.kv_length, device=device)
    return Problem(query, key, value, key_log_gain, value_gain, lengths, case.causal)


def _gains(case: AttentionCase, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    shape = (case.batch, case.kv_len)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)

    if case.gains == "none":
        return torch.ones(shape, device=generator.device), torch.ones(shape, device=generator.device)
    if case.gains == "wide":
        return 10 ** uniform(-6, 4), 10 ** uniform(-6, 4)
    if case.gains == "zero":
        return uniform(0.5, 2.0) * (uniform(0, 1) > 1 / 3), uniform(0.5, 2.0)
    score = uniform(0, 1) * (uniform(0, 1) < 0.5)  # the paper's gains, on half of the keys
    return 1 + 9.5 * score, 1 + 2.5 * score


def float64_answer(problem: Problem) -> tuple[Tensor, Tensor]:
    """The definition in float64, a batch row at a time: the output [B, Hq, Sq, Dv], and for each of its numbers the
    sum of the absolute terms, which roundings are relative to."""
    outputs: list[Tensor] = []
    magnitudes: list[Tensor] = []
    for row in range(problem.query.shape[0]):
        part = slice(row, row + 1)
        query, key, value = (tensor[part].double() for tensor in (problem.query, problem.key, problem.value))
        gains = problem.key_log_gain[part].double(), problem.value_gain[part].double()
        kv_len = key.shape[2]
        length = kv_len if problem.kv_length is None else int(problem.kv_length[row].clamp(0, kv_len))
        for results, operand in ((outputs, value), (magnitudes, value.abs())):
            results.append(anchored_attention(query, key, operand, *gains, length, is_causal=problem.causal))
    return torch.cat(outputs), torch.cat(magnitudes)


def half_precision_math(problem: Problem) -> Tensor:
    """The same attention as plain PyTorch in the inputs' own precision: every intermediate result is rounded to it.

    This is the common yardstick for a fused kernel, which should round less often. All keys must be valid.
    """
    query, key, value = problem.query, problem.key, problem.value
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    q_len, kv_len = query.shape[2], key.shape[2]
    bias = problem.key_log_gain.to(query.dtype)[:, None, None, :]
    if problem.causal:
        hidden = torch.ones(q_len, kv_len, dtype=torch.bool, device=query.device).triu(kv_len - q_len + 1)
        bias = bias.masked_fill(hidden, float("-inf"))
    weights = torch.softmax((query * query.shape[3] ** -0.5) @ key.mT + bias, dim=3)
    return weights.nan_to_num() @ (value * problem.value_gain.to(value.dtype)[:, None, :, None])
