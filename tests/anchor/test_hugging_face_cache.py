"""The KV cache by both of its names, whichever the installed transformers has; nothing may be lost in silence."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from refusals import refused
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from va_export.anchor.hugging_face import anchors, use_anchored_attention
from va_export.anchor.hugging_face_cache import cache_name, cache_of_call, cache_of_output, with_cache

PROMPT = 9


class Older(nn.Module):
    def forward(self, hidden: Tensor, past_key_values: Any = None, **kwargs: Any) -> Any:
        return past_key_values


class Newer(nn.Module):
    def forward(self, hidden: Tensor, cache: Any = None, **kwargs: Any) -> Any:
        return cache


class Neither(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> None:
        return None


@pytest.mark.parametrize("module", [Older(), Newer()])
def test_a_cache_arrives_by_the_name_that_forward_has(module: nn.Module) -> None:
    cache = object()
    assert module(torch.zeros(1), **with_cache(module, cache)) is cache


def test_a_forward_that_would_swallow_the_cache_is_refused() -> None:
    with refused("Neither", "past_key_values"):
        cache_name(Neither())


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_cache_is_found_by_either_name(name: str) -> None:
    cache = object()
    assert cache_of_call({"input_ids": 1, name: cache}) is cache
    assert cache_of_call({"cache": None, "past_key_values": None, name: cache}) is cache
    assert cache_of_output(SimpleNamespace(**{name: cache})) is cache
    assert cache_of_call({"input_ids": 1}) is None


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    return LlamaForCausalLM(config).double().eval()


def test_models_decoders_and_layers_of_this_release_take_a_cache() -> None:
    model = llama()
    names = {cache_name(module) for module in (model, model.model, *model.model.layers)}
    assert len(names) == 1
    assert cache_of_output(model(torch.ones(1, 3, dtype=torch.long), use_cache=True)).get_seq_length() == 3


@pytest.mark.parametrize("spelling", ["this release's", "past_key_values"])
def test_anchors_count_from_the_cache_however_the_decoder_is_called(spelling: str) -> None:
    """The decoder itself, as the exporter's own code calls it: a name that the hook overlooked would start at 0."""
    model = llama()
    decoder = use_anchored_attention(model).get_decoder()
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 61, (1, PROMPT + 1), generator=generator)
    key_log_gain, value_gain = torch.rand(PROMPT, generator=generator), 1 + torch.rand(PROMPT, generator=generator)
    neutral = [torch.nn.functional.pad(key_log_gain, (0, 1)), torch.nn.functional.pad(value_gain, (0, 1), value=1.0)]
    expected = decoder(ids, key_log_gain=neutral[0], value_gain=neutral[1]).last_hidden_state[:, :PROMPT]

    cache = DynamicCache(config=model.config)
    given = {"past_key_values": cache} if spelling == "past_key_values" else with_cache(decoder, cache)
    with warnings.catch_warnings(), anchors(model, key_log_gain, value_gain):
        warnings.simplefilter("ignore", FutureWarning)  # the older name, where it is older
        chunks = [
            decoder(chunk, use_cache=True, **given).last_hidden_state for chunk in ids[:, :PROMPT].split([4, 2, 3], 1)
        ]
        decoder(ids[:, PROMPT:], use_cache=True, **given)
    torch.testing.assert_close(torch.cat(chunks, dim=1), expected, rtol=1e-9, atol=1e-9)
    assert cache.get_seq_length() == PROMPT + 1
