"""The eager attention against a loop over its definition, PyTorch's own attention, and the paper's algebra."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from attention_by_loops import attention_by_loops
from refusals import refused
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from va_export.anchor import anchored_attention

# (batch, query heads, KV heads, Sq, Skv, head_dim, value_dim)
SHAPES = [
    (1, 1, 1, 1, 1, 1, 1),
    (2, 4, 4, 5, 5, 8, 8),
    (2, 6, 2, 7, 7, 16, 16),  # grouped
    (1, 8, 1, 3, 11, 8, 4),  # one KV head; Skv > Sq; value_dim apart
    (3, 4, 2, 9, 5, 8, 8),  # Sq > Skv: the first queries see no key
    (2, 2, 1, 1, 13, 4, 4),  # decode
    (1, 5, 5, 17, 31, 3, 7),
]


def random_case(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    batch, query_heads, kv_heads, q_len, kv_len, head_dim, value_dim = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    return {
        "query": (2 * normal(batch, query_heads, q_len, head_dim)).to(dtype),
        "key": normal(batch, kv_heads, kv_len, head_dim).to(dtype),
        "value": normal(batch, kv_heads, kv_len, value_dim).to(dtype),
        "key_log_gain": torch.log1p(9.5 * torch.rand(batch, kv_len, generator=generator)),
        "value_gain": 1 + 2.5 * torch.rand(batch, kv_len, generator=generator),
        "kv_length": torch.randint(0, kv_len + 1, (batch,), generator=generator),
    }


def by_loops(case: dict[str, Tensor], **options: Any) -> Tensor:
    arrays = {
        name: tensor.double().numpy() if tensor.is_floating_point() else tensor.numpy() for name, tensor in case.items()
    }
    options.setdefault("scale", case["query"].shape[3] ** -0.5)
    return torch.from_numpy(attention_by_loops(**arrays, **options))


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_definition(shape: tuple[int, ...], is_causal: bool) -> None:
    # float32: a few roundings of values of size 1; half types: one rounding of the result on top.
    for dtype, tolerance in (
        (torch.float64, 1e-7),
        (torch.float32, 1e-5),
        (torch.bfloat16, 2e-2),
        (torch.float16, 3e-3),
    ):
        case = random_case(shape, dtype)
        ours = anchored_attention(**case, is_causal=is_causal)
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), by_loops(case, is_causal=is_causal), rtol=tolerance, atol=tolerance)


def test_scale_is_taken_as_given() -> None:
    case = random_case(SHAPES[2], torch.float64)
    ours = anchored_attention(**case, scale=0.7)
    torch.testing.assert_close(ours, by_loops(case, scale=0.7, is_causal=True), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_nothing_beyond_kv_length_leaks(garbage: float, is_causal: bool) -> None:
    case = random_case((2, 4, 2, 6, 10, 8, 8), torch.float32)
    case["kv_length"] = torch.tensor([7, 3])
    clean = anchored_attention(**case, is_causal=is_causal)
    for row, length in enumerate([7, 3]):
        for name in ("key", "value"):
            case[name][row, :, length:] = garbage
        for name in ("key_log_gain", "value_gain"):
            case[name][row, length:] = garbage
    torch.testing.assert_close(anchored_attention(**case, is_causal=is_causal), clean, rtol=0, atol=0)


def test_queries_that_see_no_key_give_zero() -> None:
    case = random_case((2, 4, 2, 6, 10, 8, 8), torch.float32)
    case["kv_length"] = torch.tensor([0, 4])
    ours = anchored_attention(**case)
    assert (ours[0] == 0).all()
    assert (ours[1, :, :2] == 0).all()
    assert (ours[1, :, 2:] != 0).all()


def test_a_key_gain_of_zero_removes_the_key() -> None:
    case = random_case((1, 2, 2, 4, 6, 8, 8), torch.float64)
    case["kv_length"] = torch.tensor([6])
    case["key_log_gain"][:, 2] = -torch.inf
    ours = anchored_attention(**case, is_causal=False)
    without = {name: tensor for name, tensor in case.items() if name != "kv_length"}
    keep = [0, 1, 3, 4, 5]
    for name in ("key", "value"):
        without[name] = without[name][:, :, keep]
    for name in ("key_log_gain", "value_gain"):
        without[name] = without[name][:, keep]
    torch.testing.assert_close(ours, anchored_attention(**without, is_causal=False), rtol=0, atol=1e-14)
    case["key_log_gain"][:] = -torch.inf
    assert (anchored_attention(**case) == 0).all()


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
def test_equals_pytorch_attention_without_gains(heads: tuple[int, int]) -> None:
    case = random_case((2, *heads, 9, 9, 16, 16), torch.float32)
    query, key, value = case["query"], case["key"], case["value"]
    expected = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(anchored_attention(query, key, value), expected, rtol=1e-5, atol=1e-6)
    neutral = torch.zeros(2, 9), torch.ones(2, 9)
    torch.testing.assert_close(anchored_attention(query, key, value, *neutral), expected, rtol=1e-5, atol=1e-6)
    expected = scaled_dot_product_attention(query, key, value, enable_gqa=True)
    torch.testing.assert_close(anchored_attention(query, key, value, is_causal=False), expected, rtol=1e-5, atol=1e-6)


def test_gain_on_queries_cancels() -> None:
    """The paper's γ_Q: log γ_Q[i] on all of row i's logits changes no weight, so the op has no such input."""
    case = random_case((2, 4, 2, 7, 12, 8, 8), torch.float64)
    query_gain = 1 + 4.0 * np.random.default_rng(0).random((2, 7))
    plain = by_loops(case, is_causal=True)
    gained = by_loops(case, is_causal=True, query_log_gain=np.log(query_gain))
    # A logit is rounded where γ_Q comes in and where the row's peak goes out, which changes its weight by as much; and
    # the same without γ_Q: four roundings u |logit| of a weighted mean of values.
    lengths = [case[name].norm(dim=3).max() for name in ("query", "key")]
    logit = lengths[0] * lengths[1] / 8**0.5 + case["key_log_gain"].abs().max() + np.log(5.0)
    roundings = 4 * 2.0**-53 * float(logit * case["value"].abs().max() * case["value_gain"].abs().max())
    assert 0 < roundings < 1e-12
    torch.testing.assert_close(gained, plain, rtol=0, atol=roundings)
    torch.testing.assert_close(anchored_attention(**case), gained, rtol=0, atol=1e-7)


def test_equals_the_weighted_average_form() -> None:
    """O = Σ p γ_K γ_V v / Σ p γ_K with p of the unbiased logits: no logarithm, and how a kernel computes it."""
    case = random_case((2, 4, 2, 8, 8, 16, 16), torch.float64)
    key_gain = case["key_log_gain"].double().exp()[:, None, :, None]
    value_gain = case["value_gain"].double()[:, None, :, None]
    augmented = torch.cat([key_gain * value_gain * case["value"], key_gain.expand(2, 2, 8, 1)], dim=3)
    sums = scaled_dot_product_attention(case["query"], case["key"], augmented, is_causal=True, enable_gqa=True)
    del case["kv_length"]
    torch.testing.assert_close(anchored_attention(**case), sums[..., :-1] / sums[..., -1:], rtol=0, atol=1e-13)


def test_a_prefix_cache_gives_the_last_rows() -> None:
    """Bottom-right alignment: the last queries over all keys are the last rows of the whole."""
    case = random_case((2, 4, 2, 12, 12, 8, 8), torch.float64)
    del case["kv_length"]
    whole = anchored_attention(**case)
    case["query"] = case["query"][:, :, 7:]
    torch.testing.assert_close(anchored_attention(**case), whole[:, :, 7:], rtol=0, atol=1e-14)


def test_one_length_or_one_row_of_gains_serves_the_batch() -> None:
    case = random_case((3, 2, 2, 4, 9, 8, 8), torch.float64)
    case["kv_length"] = torch.tensor([6, 6, 6])
    for name in ("key_log_gain", "value_gain"):
        case[name] = case[name][:1].expand(3, -1)
    expected = anchored_attention(**case)
    gains = {name: case[name][0] for name in ("key_log_gain", "value_gain")}
    torch.testing.assert_close(anchored_attention(**{**case, **gains, "kv_length": 6}), expected, rtol=0, atol=0)
    gains = {name: case[name][:1] for name in ("key_log_gain", "value_gain")}
    torch.testing.assert_close(anchored_attention(**{**case, **gains}), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"query": torch.zeros(4, 6, 8)}, [(4, 6, 8)]),
        ({"query": torch.zeros(1, 4, 6, 8)}, [(1, 4, 6, 8)]),
        ({"query": torch.zeros(2, 4, 6, 9)}, [(2, 4, 6, 9)]),
        ({"value": torch.zeros(2, 2, 9, 8)}, [(2, 2, 9, 8)]),
        ({"query": torch.zeros(2, 3, 6, 8)}, [3, 2]),
        ({"query": torch.zeros(2, 4, 0, 8)}, [(2, 4, 0, 8)]),
        ({"key_log_gain": torch.zeros(2, 9)}, ["key_log_gain", (2, 9)]),
        ({"value_gain": torch.zeros(2, 1)}, ["value_gain", (2, 1)]),
        ({"kv_length": torch.tensor([3, 11])}, ["kv_length", [3, 11], "0..10"]),
        ({"kv_length": -1}, ["kv_length", -1, "0..10"]),
        ({"kv_length": torch.tensor([1, 2, 3])}, ["kv_length", 3, 2]),
    ],
)
def test_bad_shapes_are_refused(change: dict[str, Any], named: list[object]) -> None:
    case = random_case((2, 4, 2, 6, 10, 8, 8), torch.float32)
    with refused("anchored_attention", *named):
        anchored_attention(**{**case, **change})
