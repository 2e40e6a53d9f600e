"""InternVL2's prompt, letter by letter, and its preprocessing settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from va_export.checkpoint.files import Checkpoint
from va_export.models import family_for, family_named
from va_export.runtime.processing import Processing
from va_export.runtime.tokenizer import load_tokenizer


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return family_named("internvl2").write_tiny_checkpoint(tmp_path)


def processing_of(directory: Path) -> Processing:
    checkpoint = Checkpoint.open(directory)
    family = family_for(checkpoint.config)
    return family.processing(family.spec_from_checkpoint(checkpoint), checkpoint)


def test_prompt_for_two_frames(directory: Path) -> None:
    image = "<img>" + "<IMG_CONTEXT>" * 16 + "</img>"
    assert processing_of(directory).prompt_text("What happens?", 2) == (
        "<|im_start|>system\n"
        "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，"
        "英文名叫InternVL, 是一个有用无害的人工智能助手。<|im_end|>"
        "<|im_start|>user\n"
        f"Frame1: {image}\n"
        f"Frame2: {image}\n"
        "What happens?<|im_end|>"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("decoder", ["LlamaForCausalLM", "Qwen2ForCausalLM"])
def test_both_templates_ask_in_the_same_words(decoder: str, directory: Path) -> None:
    """conversation.py of the published checkpoints: one system message, one set of roles, for both names."""
    expected = processing_of(directory).prompt_text("Why?", 1)
    config = json.loads((directory / "config.json").read_text())
    config["template"] = "Hermes-2"
    config["llm_config"] |= {"architectures": [decoder], "rope_scaling": None}
    (directory / "config.json").write_text(json.dumps(config))
    assert processing_of(directory).prompt_text("Why?", 1) == expected


def test_ids_start_with_bos_and_hold_every_placeholder(directory: Path) -> None:
    processing, tokenizer = processing_of(directory), load_tokenizer(directory)
    assert tokenizer is not None
    ids = processing.input_ids("Why?", 3, tokenizer)
    assert ids.shape[0] == 1
    assert ids[0, 0] == tokenizer.token_id("<s>")
    assert ids[0, 1] == tokenizer.token_id("<|im_start|>")
    assert (ids == tokenizer.token_id("<IMG_CONTEXT>")).sum() == 48
    assert (ids == tokenizer.token_id("<img>")).sum() == (ids == tokenizer.token_id("</img>")).sum() == 3
    assert set(processing.stop_token_ids) == {tokenizer.token_id("</s>"), tokenizer.token_id("<|im_end|>")}


def test_a_tokenizer_that_adds_no_bos_is_obeyed(directory: Path) -> None:
    """Its own post-processor says so; Transformers 5 does not look at add_bos_token beside a tokenizer.json."""
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": False}))
    expected = AutoTokenizer.from_pretrained(directory)("a")["input_ids"]
    assert processing_of(directory).bos_token_id == expected[0] == 256
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": None}))
    assert processing_of(directory).bos_token_id is None


def test_settings_are_the_published_ones(directory: Path) -> None:
    processing = processing_of(directory)
    assert processing.mean == (0.485, 0.456, 0.406)  # ImageNet
    assert processing.std == (0.229, 0.224, 0.225)
    assert (processing.resample, processing.frame_sampling) == ("bicubic", "segment-midpoint")
    assert processing.image_size == 112
    assert processing.bos_token_id == 256
