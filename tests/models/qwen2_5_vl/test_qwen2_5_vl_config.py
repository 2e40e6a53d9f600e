"""config.json in both spellings, and what of it is refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from refusals import refused

from va_export.models import family_for
from va_export.models.family import Choices, ModelSpec
from va_export.models.patch_shape import patches
from va_export.models.qwen2_5_vl.published import published_config, published_names

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "qwen2_5_vl_tiny"


def config(**changed: Any) -> dict[str, Any]:
    content: dict[str, Any] = {**json.loads((GOLDEN / "config.json").read_text()), **changed}
    return {key: value for key, value in content.items() if value is not ...}


def vision(**changed: Any) -> dict[str, Any]:
    return {**config()["vision_config"], **changed}


def spec(content: dict[str, Any], **choices: Any) -> ModelSpec:
    return family_for(content).spec_from_config(content, Choices(**choices))


def test_sizes_are_read() -> None:
    found = spec(config())
    assert (found.text.num_layers, found.text.num_heads, found.text.num_kv_heads, found.text.head_dim) == (2, 4, 2, 32)
    assert found.text.rope_theta == 1e6 and found.eos_token_ids == (582,)
    shape = patches(found)
    assert (shape.num_layers, shape.full_blocks, shape.window_patches) == (4, (1, 3), 64)
    assert shape.visual_tokens(8) == 4 * 768 and shape.visual_tokens(1) == 2048  # one image has more than one grid
    assert found.names["head"] == "lm_head.weight"


def test_transformers_5_writes_the_same_model() -> None:
    """Nested, with rope_parameters; its text_config repeats class defaults that the top level says otherwise."""
    whole = config()
    text_keys = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads")
    text_keys += ("rms_norm_eps", "vocab_size", "max_position_embeddings", "hidden_act", "eos_token_id", "bos_token_id")
    text = {key: whole.pop(key) for key in text_keys}
    rope = {"rope_type": "default", "rope_theta": whole.pop("rope_theta"), **whole.pop("rope_scaling")}
    nested = {**whole, "text_config": {**text, "rope_parameters": rope, "tie_word_embeddings": True}}
    assert spec(nested) == spec(config())


def test_tied_models_take_the_embedding_for_the_head() -> None:
    found = spec(config(tie_word_embeddings=True))
    assert found.names["head"] == "model.embed_tokens.weight"


def test_fewer_pixels_are_fewer_tokens() -> None:
    assert patches(spec(config(), max_pixels=50176)).visual_tokens(8) == 4 * 64
    with refused("--max-pixels", 100, 28):
        spec(config(), max_pixels=100)


@pytest.mark.parametrize(
    ("changed", "key", "named"),
    [
        ({"rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 7]}}, "rope_scaling.mrope_section", [4, 6, 7, 32]),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [8, 8]}}, "rope_scaling.mrope_section", [8]),
        ({"rope_scaling": {"type": "yarn", "mrope_section": [4, 6, 6]}}, "rope_scaling", ["yarn"]),
        ({"rope_scaling": ...}, "rope_scaling.mrope_section", []),
        ({"rope_theta": ...}, "rope_theta", []),
        ({"rope_parameters": {"rope_theta": 5.0}}, "rope_theta", []),
        ({"num_attention_heads": 3}, "num_attention_heads", [128, 3]),
        ({"use_sliding_window": True}, "use_sliding_window", []),
        ({"video_token_id": 600}, "video_token_id", [600]),
        ({"eos_token_id": [1, 700]}, "eos_token_id", [700]),
        ({"vision_config": vision(window_size=100)}, "vision_config.window_size", [100, 28]),
        ({"vision_config": vision(out_hidden_size=64)}, "vision_config.out_hidden_size", [64, 128]),
        ({"vision_config": vision(fullatt_block_indexes=[4])}, "vision_config.fullatt_block_indexes", [4]),
        ({"vision_config": vision(num_heads=3)}, "vision_config.num_heads", [64, 3]),
        ({"vision_config": vision(tokens_per_second=0)}, "vision_config.tokens_per_second", []),
        ({"hidden_act": "gelu"}, "hidden_act", []),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changed: dict[str, Any], key: str, named: list[object]) -> None:
    with refused(f"config.json: {key}", *named):
        spec(config(**changed))


@pytest.mark.parametrize("other", ["Qwen2VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration"])
def test_its_relatives_are_named(other: str) -> None:
    with refused("config.json: architectures", other):
        family_for(config(architectures=[other]))


def test_more_layers_than_there_are_cannot_be_exported() -> None:
    with refused("num_decoder_layers", 3, 2):
        spec(config(), num_decoder_layers=3)


@pytest.mark.parametrize("name", published_names())
def test_published_sizes_make_a_model_of_that_size(name: str) -> None:
    """Parameters as published, towers counted and a tied matrix once; to 2 %, for they are rounded."""
    content = published_config(name)
    assert content is not None
    found = spec(content)
    weights = family_for(content).weight_map(found)
    tensors = {source.checkpoint_name: source.checkpoint_shape for source in weights.values()}
    total = sum(math.prod(shape) for shape in tensors.values())
    stated = {"3B": 3.75e9, "7B": 8.29e9, "32B": 33.5e9, "72B": 73.4e9}[name.split("-")[-2]]
    assert abs(total / stated - 1) < 0.02
