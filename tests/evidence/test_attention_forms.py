"""The peers that anchored attention is timed against give the anchored result; the plain ones give the plain one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AttentionInterface

from va_export.anchor.attention import anchored_attention
from va_export.evidence.attention_forms import AttentionForm, causal_bias, peer_forms

FORMS = peer_forms(torch.device("cpu"))
LENGTH = 37  # no multiple of the 16 bytes that a mask's rows are aligned to


def inputs(q_len: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(q_len)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    query, key, value = normal(1, 6, q_len, 16), normal(1, 2, LENGTH, 16), normal(1, 2, LENGTH, 16)
    gain = 1 + 9.5 * torch.rand(1, LENGTH, generator=generator)
    return query, key, value, gain.log(), 1 + gain / 4


def attend(form: AttentionForm, *tensors: torch.Tensor) -> torch.Tensor:
    query, key, value, key_log_gain, value_gain = tensors
    forward = AttentionInterface()[form.implementation]
    module = SimpleNamespace(is_causal=True)
    output, _ = forward(module, query, key, value, None, scaling=0.3, key_log_gain=key_log_gain, value_gain=value_gain)
    return output.transpose(1, 2)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("q_len", [LENGTH, 1])
def test_forms_agree_with_the_definition(form: AttentionForm, q_len: int) -> None:
    query, key, value, key_log_gain, value_gain = inputs(q_len)
    anchored = form.anchored and q_len > 1  # a step of one query is plain
    gains = (key_log_gain.double(), value_gain.double()) if anchored else (None, None)
    expected = anchored_attention(query.double(), key.double(), value.double(), *gains, scale=0.3)
    actual = attend(form, query, key, value, key_log_gain, value_gain)
    # float32 roundoff 6e-8, some tens of terms of size 1 a sum, value gains up to 4
    torch.testing.assert_close(actual, expected.float(), rtol=1e-5, atol=5e-6)


def test_a_new_prompt_gets_its_own_dense_bias() -> None:
    form = next(form for form in FORMS if form.name == "sdpa_dense_bias")
    query, key, value, key_log_gain, value_gain = inputs(LENGTH)
    first = attend(form, query, key, value, key_log_gain, value_gain)
    other = attend(form, query, key, value, key_log_gain.flip(1), value_gain)
    again = attend(form, query, key, value, key_log_gain.clone(), value_gain)
    assert not torch.allclose(first, other, atol=1e-3)
    torch.testing.assert_close(again, first)


def test_bias_is_causal_and_aligned() -> None:
    bias = causal_bias(torch.full((1, 5), 2.0), 3, 5, torch.float16, "cpu")
    assert bias.shape == (1, 1, 3, 5) and bias.stride(2) == 16
    seen = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    assert torch.equal(bias[0, 0] == 2.0, seen) and torch.equal(bias[0, 0] == float("-inf"), ~seen)
