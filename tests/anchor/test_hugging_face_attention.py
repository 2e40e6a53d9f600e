"""The attention named "anchored" in tiny Hugging Face models with random weights, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from refusals import refused
from torch import Tensor
from transformers import (
    AttentionInterface,
    DynamicCache,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    StaticCache,
)

from va_export.anchor import anchors, hugging_face, use_anchored_attention

PROMPT = 13
TEXT = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": None,
    "initializer_range": 0.3,  # large enough for attention that is not flat
}


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return use_anchored_attention(LlamaForCausalLM(LlamaConfig(**TEXT)).double().eval())


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(1, 61, (2, PROMPT), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def gains() -> tuple[Tensor, Tensor]:
    """(key_log_gain, value_gain), each [2, PROMPT]."""
    generator = torch.Generator().manual_seed(2)
    visual = torch.arange(PROMPT).remainder(3) > 0
    score = torch.rand(2, PROMPT, generator=generator) * visual
    return torch.log1p(9.5 * score), 1 + 2.5 * score


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def dense_logits(model: LlamaForCausalLM, ids: Tensor, gains: tuple[Tensor, Tensor], *, plain_from: int) -> Tensor:
    """Logits by a dense bias and scaled values over the whole sequence; rows from `plain_from` on use neither."""
    length = ids.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    anchored_row = torch.arange(length) < plain_from
    pad = (0, length - PROMPT)
    key_log_gain = torch.nn.functional.pad(gains[0].double(), pad)[:, None, None, :] * anchored_row[:, None]
    value_gain = torch.nn.functional.pad(gains[1].double(), pad, value=1.0)[:, None, None, :]
    value_gain = torch.where(anchored_row[:, None], value_gain, 1.0)

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, scaling: float, **_: Any) -> Any:
        key, value = (tensor.repeat_interleave(2, dim=1) for tensor in (key, value))
        logits = query @ key.mT * scaling + key_log_gain
        weights = logits.masked_fill(~seen, -torch.inf).softmax(-1) * value_gain
        return (weights @ value).transpose(1, 2), None

    AttentionInterface.register("dense_for_this_test", attend)
    model.model.set_attn_implementation("dense_for_this_test")
    logits: Tensor = model(ids).logits
    use_anchored_attention(model)
    return logits


@pytest.mark.parametrize("peer", ["eager", "sdpa"])
def test_without_gains_it_is_plain_attention(model: LlamaForCausalLM, ids: Tensor, peer: str) -> None:
    ours = model(ids).logits
    model.set_attn_implementation(peer)
    # transformers' eager attention takes its softmax in float32, whatever the model's type.
    torch.testing.assert_close(ours, model(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_honoured_with_and_without_gains(
    model: LlamaForCausalLM, ids: Tensor, gains: tuple[Tensor, Tensor], side: str
) -> None:
    pad = 4
    width = (pad, 0) if side == "left" else (0, pad)
    kept = slice(pad, None) if side == "left" else slice(0, PROMPT)
    positions = (torch.arange(PROMPT + pad) - width[0]).clamp(min=0)[None]
    padded, mask = torch.nn.functional.pad(ids, width), torch.nn.functional.pad(torch.ones_like(ids), width)
    padded[0], mask[0] = torch.cat([ids[0], ids[0, :pad]]), 1  # the first row is full, and longer
    wide = [
        torch.nn.functional.pad(gain, width, value=neutral) for gain, neutral in zip(gains, (0.0, 1.0), strict=True)
    ]
    for kwargs, wide_kwargs in (
        ({}, {}),
        ({"key_log_gain": gains[0], "value_gain": gains[1]}, {"key_log_gain": wide[0], "value_gain": wide[1]}),
    ):
        ours = model(padded, attention_mask=mask, position_ids=positions, **wide_kwargs).logits[1, kept]
        torch.testing.assert_close(ours, model(ids, **kwargs).logits[1], rtol=1e-9, atol=1e-9)


def test_gains_equal_a_dense_bias_and_scaled_values(
    model: LlamaForCausalLM, ids: Tensor, gains: tuple[Tensor, Tensor]
) -> None:
    expected = dense_logits(model, ids, gains, plain_from=PROMPT)
    ours = model(ids, key_log_gain=gains[0], value_gain=gains[1]).logits
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    with anchors(model, *gains):
        torch.testing.assert_close(model(ids).logits, ours, rtol=0, atol=0)
    assert (ours - model(ids).logits).abs().max() > 0.1  # and the gains matter; outside the block they are gone


def test_decoding_is_plain_over_the_anchored_cache(
    model: LlamaForCausalLM, ids: Tensor, gains: tuple[Tensor, Tensor]
) -> None:
    steps = torch.randint(1, 61, (2, 3), generator=torch.Generator().manual_seed(3))
    expected = dense_logits(model, torch.cat([ids, steps], dim=1), gains, plain_from=PROMPT)
    with anchors(model, *gains):
        output = model(ids, use_cache=True)
        logits = [output.logits]
        for step in steps.split(1, dim=1):
            output = model(step, past_key_values=output.past_key_values, use_cache=True)
            logits.append(output.logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, rtol=1e-6, atol=1e-6)


def test_gains_given_to_a_step_of_one_query_do_nothing(model: LlamaForCausalLM, ids: Tensor) -> None:
    cache = model(ids[:, :-1], use_cache=True).past_key_values
    gains = {"key_log_gain": torch.rand(2, PROMPT), "value_gain": 1 + torch.rand(2, PROMPT)}
    step = model(ids[:, -1:], past_key_values=cache, **gains).logits
    torch.testing.assert_close(step, model(ids).logits[:, -1:], rtol=1e-9, atol=1e-9)


def test_chunks_of_a_prompt_see_the_gains_of_earlier_chunks(
    model: LlamaForCausalLM, ids: Tensor, gains: tuple[Tensor, Tensor]
) -> None:
    whole = model(ids, key_log_gain=gains[0], value_gain=gains[1]).logits
    cache = DynamicCache(config=model.config)
    with anchors(model, *gains):
        chunks = [model(chunk, past_key_values=cache, use_cache=True).logits for chunk in ids.split([5, 2, 6], dim=1)]
    torch.testing.assert_close(torch.cat(chunks, dim=1), whole, rtol=1e-9, atol=1e-9)


def greedy(model: LlamaForCausalLM, ids: Tensor, gains: tuple[Tensor, Tensor], steps: int) -> Tensor:
    """Greedy decoding by whole-sequence dense attention."""
    sequence = ids
    for _ in range(steps):
        token = dense_logits(model, sequence, gains, plain_from=PROMPT)[:, -1].argmax(-1, keepdim=True)
        sequence = torch.cat([sequence, token], dim=1)
    return sequence


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prefill_chunk_size": 5},
        {"cache_implementation": "static", "disable_compile": True},
        {"inputs_as_embeds": True},
    ],
    ids=str,
)
def test_generate_is_anchored(
    model: LlamaForCausalLM, ids: Tensor, gains: tuple[Tensor, Tensor], options: dict[str, Any]
) -> None:
    expected = greedy(model, ids, gains, 6)
    plain = model.generate(ids, max_new_tokens=6, do_sample=False)
    assert not torch.equal(plain, expected)
    with anchors(model, *gains):
        if options.pop("inputs_as_embeds", False):
            embeddings = model.get_input_embeddings()(ids)
            ours = torch.cat([ids, model.generate(inputs_embeds=embeddings, max_new_tokens=6, do_sample=False)], dim=1)
        else:
            ours = model.generate(ids, max_new_tokens=6, do_sample=False, **options)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(model.generate(ids, max_new_tokens=6, do_sample=False), plain)


def test_beams_repeat_each_row_of_gains(model: LlamaForCausalLM, ids: Tensor, gains: tuple[Tensor, Tensor]) -> None:
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "num_beams": 2}
    with anchors(model, *gains):
        together = model.generate(ids, **options)
    for row in range(2):
        with anchors(model, gains[0][row], gains[1][row]):
            torch.testing.assert_close(model.generate(ids[row : row + 1], **options)[0], together[row])


def test_a_left_padded_batch_generates_what_its_rows_do_alone(
    model: LlamaForCausalLM, ids: Tensor, gains: tuple[Tensor, Tensor]
) -> None:
    pad = 3
    padded, mask = ids.clone(), torch.ones_like(ids)
    padded[1] = torch.cat([torch.zeros(pad, dtype=ids.dtype), ids[1, : PROMPT - pad]])
    mask[1, :pad] = 0
    with anchors(model, *gains):
        together = model.generate(padded, attention_mask=mask, max_new_tokens=5, do_sample=False)
    with anchors(model, gains[0][1:, pad:], gains[1][1:, pad:]):
        alone = model.generate(padded[1:, pad:], max_new_tokens=5, do_sample=False)
    torch.testing.assert_close(together[1, PROMPT:], alone[0, PROMPT - pad :])


def test_no_dense_mask_is_made_for_prompts_padding_or_decoding(
    model: LlamaForCausalLM, ids: Tensor, gains: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a dense mask was made")

    monkeypatch.setattr(hugging_face, "sdpa_mask", refuse)
    mask = torch.ones_like(ids)
    with anchors(model, *gains):
        model.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False)
        mask[0, :2] = 0
        model.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False)
    with pytest.raises(AssertionError, match="dense mask"):  # the check can fail: a static cache needs one
        model(ids, past_key_values=StaticCache(model.config, max_cache_len=20))


def test_sliding_windows_keep_their_pattern(ids: Tensor) -> None:
    torch.manual_seed(0)
    mistral = MistralForCausalLM(MistralConfig(**TEXT, sliding_window=5)).double().eval()
    expected = mistral(ids).logits
    tokens = mistral.generate(ids, max_new_tokens=6, do_sample=False)
    use_anchored_attention(mistral)
    torch.testing.assert_close(mistral(ids).logits, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mistral.generate(ids, max_new_tokens=6, do_sample=False), tokens)
    cache = DynamicCache(config=mistral.config)
    mistral(ids[:, :9], past_key_values=cache)
    with refused("anchored"):  # gains would be read at the wrong positions
        mistral(ids[:, 9:], past_key_values=cache)


def test_the_vision_tower_is_left_alone(ids: Tensor, gains: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    config = InternVLConfig(
        text_config={"model_type": "llama", **TEXT},
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "image_size": [28, 28],
            "patch_size": [14, 14],
            "initializer_range": 0.3,
        },
        image_token_id=60,
        downsample_ratio=0.5,
    )
    internvl = InternVLForConditionalGeneration(config).double().eval()
    prompt = ids.clamp(max=59)
    prompt[:, 4] = 60  # 28 / 14 = 2 patches a side; the pixel shuffle makes one token of four
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    vision = internvl.model.vision_tower.config._attn_implementation
    plain = internvl(input_ids=prompt, pixel_values=pixels)
    use_anchored_attention(internvl)
    assert internvl.model.vision_tower.config._attn_implementation == vision != "anchored"
    assert internvl.model.language_model.config._attn_implementation == "anchored"
    torch.testing.assert_close(
        internvl(input_ids=prompt, pixel_values=pixels).logits, plain.logits, rtol=1e-6, atol=1e-6
    )
    with anchors(internvl, *gains):
        anchored = internvl(input_ids=prompt, pixel_values=pixels)
    torch.testing.assert_close(anchored.image_hidden_states, plain.image_hidden_states, rtol=0, atol=0)
    assert (anchored.logits - plain.logits).abs().max() > 0.1
    by_keyword = internvl(input_ids=prompt, pixel_values=pixels, key_log_gain=gains[0], value_gain=gains[1])
    torch.testing.assert_close(by_keyword.logits, anchored.logits, rtol=0, atol=0)


# What is refused, rather than computed wrongly


def test_anchors_need_the_anchored_attention(model: LlamaForCausalLM, gains: tuple[Tensor, Tensor]) -> None:
    model.set_attn_implementation("sdpa")
    with refused("LlamaForCausalLM", "sdpa"), anchors(model, *gains):
        pass


def test_gains_must_fit_prompt_and_batch(model: LlamaForCausalLM, ids: Tensor, gains: tuple[Tensor, Tensor]) -> None:
    with refused("anchors", (2, 13), (2, 12)), anchors(model, gains[0], gains[1][:, 1:]):
        pass
    with refused("anchors", 12), anchors(model, *(g[:, 1:] for g in gains)):
        model(ids)
    with refused("anchors", 2, 3), anchors(model, *gains):
        model(ids[[0, 1, 1]])
    with refused("anchored", "key_log_gain", 12, 13):
        model(ids, key_log_gain=gains[0][:, 1:])
    assert not model.model._forward_pre_hooks  # errors leave nothing behind


def test_a_last_chunk_of_one_position_is_refused(
    model: LlamaForCausalLM, ids: Tensor, gains: tuple[Tensor, Tensor]
) -> None:
    with refused("anchors", "12..12"), anchors(model, *gains):
        model.generate(ids, max_new_tokens=2, do_sample=False, prefill_chunk_size=4)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"attention_mask": torch.zeros(1, 1, PROMPT, PROMPT)}, "float32"),
        ({"output_attentions": True}, "output_attentions"),
        ({"softcap": 30.0}, "softcap"),
    ],
)
def test_what_it_does_not_compute_is_refused(
    model: LlamaForCausalLM, ids: Tensor, options: dict[str, Any], what: str
) -> None:
    with refused("LlamaAttention", what):
        model(ids, **options)


def test_attention_dropout_is_refused(ids: Tensor) -> None:
    model = use_anchored_attention(LlamaForCausalLM(LlamaConfig(**TEXT, attention_dropout=0.1)))
    with refused("LlamaAttention", "dropout"):
        model.train()(ids)
