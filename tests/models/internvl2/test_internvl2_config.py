"""InternVL2's config.json: the published 8B configuration, and everything that is refused by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from va_export.errors import VaExportError
from va_export.models import family_for
from va_export.models.family import DynamicNtkScaling, ModelSpec, TextShape
from va_export.models.internvl2.tiles import TileShape

# What OpenGVLab/InternVL2-8B's config.json says, less the fields that transformers writes by itself.
CONFIG_8B: dict[str, Any] = {
    "architectures": ["InternVLChatModel"],
    "model_type": "internvl_chat",
    "template": "internlm2-chat",
    "downsample_ratio": 0.5,
    "force_image_size": 448,
    "ps_version": "v2",
    "select_layer": -1,
    "llm_config": {
        "architectures": ["InternLM2ForCausalLM"],
        "bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 2.0, "type": "dynamic"},
        "rope_theta": 1000000,
        "tie_word_embeddings": False,
        "vocab_size": 92553,
    },
    "vision_config": {
        "architectures": ["InternVisionModel"],
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "image_size": 448,
        "intermediate_size": 4096,
        "layer_norm_eps": 1e-06,
        "norm_type": "layer_norm",
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "qk_normalization": False,
        "qkv_bias": True,
    },
}


def spec_of(config: dict[str, Any], layers: int | None = None, image_token_id: int | None = None) -> ModelSpec:
    return family_for(config).spec_from_config(config, layers, image_token_id)


def edited(path: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG_8B)
    *sections, key = path.split(".")
    section = config
    for name in sections:
        section = section[name]
    if value is ...:
        del section[key]
    else:
        section[key] = value
    return config


def test_reads_the_8b_configuration() -> None:
    spec = spec_of(CONFIG_8B)
    assert spec.text == TextShape(
        hidden_size=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        intermediate_size=14336,
        vocab_size=92553,
        max_position_embeddings=32768,
        rms_norm_eps=1e-5,
        rope_theta=1e6,
        rope_scaling=DynamicNtkScaling(2.0),
    )
    assert spec.vision == TileShape(
        positions_per_frame=1025,
        image_size=448,
        patch_size=14,
        tokens_per_frame=256,
        hidden_size=1024,
        num_layers=24,
        num_heads=16,
        intermediate_size=4096,
    )
    assert spec.image_token_id == 92546
    assert spec.eos_token_ids == (2, 92542)
    assert spec.checkpoint_layers == 32


def test_untied_embeddings_reach_every_level_of_the_hugging_face_config() -> None:
    spec = spec_of(CONFIG_8B)
    assert spec.hf_config["tie_word_embeddings"] is False
    assert spec.hf_config["text_config"]["tie_word_embeddings"] is False


def test_cuts_the_decoder() -> None:
    spec = spec_of(CONFIG_8B, 3)
    assert (spec.text.num_layers, spec.checkpoint_layers) == (3, 32)
    assert spec.hf_config["text_config"]["num_hidden_layers"] == 3
    for layers in (0, 33, -1):
        with pytest.raises(VaExportError, match=f"{layers} decoder layers asked for, the checkpoint has 32"):
            spec_of(CONFIG_8B, layers)


def test_image_token_is_given_or_known_or_open() -> None:
    assert spec_of(CONFIG_8B, image_token_id=7).image_token_id == 7
    other = edited("llm_config.vocab_size", 1000)
    assert spec_of(other, image_token_id=999).image_token_id == 999
    assert spec_of(other).image_token_id is None
    with pytest.raises(VaExportError, match="1000 is outside the vocabulary"):
        spec_of(other, image_token_id=1000)


def test_absent_scaling_is_plain_rotary_embedding() -> None:
    spec = spec_of(edited("llm_config.rope_scaling", None))
    assert spec.text.rope_scaling is None
    assert spec.hf_config["text_config"]["rope_parameters"] == {"rope_type": "default", "rope_theta": 1e6}


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("llm_config.architectures", ["GemmaForCausalLM"], "GemmaForCausalLM, is not supported"),
        ("llm_config.architectures", ["GemmaForCausalLM"], "InternLM2ForCausalLM, LlamaForCausalLM, Qwen2ForCausalLM"),
        ("llm_config.architectures", ["Phi3ForCausalLM"], "Phi3ForCausalLM, is not supported: its rotary embedding"),
        ("llm_config", ..., "lacks llm_config"),
        ("llm_config.hidden_size", 4097, "do not divide"),
        ("llm_config.num_key_value_heads", 5, "do not divide"),
        ("llm_config.num_attention_heads", 0, "num_attention_heads is 0"),
        ("llm_config.vocab_size", "many", "vocab_size is 'many'"),
        ("llm_config.rope_theta", ..., "lacks rope_theta"),
        ("llm_config.rope_theta", -1.0, "rope_theta is -1.0"),
        ("llm_config.rope_scaling", {"type": "linear", "factor": 2.0}, "'linear' is not supported"),
        ("llm_config.rope_scaling", {"type": "dynamic", "factor": 0.5}, "factor of 0.5 is below 1"),
        ("llm_config.rope_scaling", {"type": "dynamic"}, "lacks factor"),
        ("llm_config.hidden_act", "gelu", "'gelu' is not silu"),
        ("llm_config.tie_word_embeddings", True, "tied word embeddings"),
        ("vision_config.patch_size", 15, "do not divide evenly"),
        ("vision_config.image_size", 224, "force_image_size 448 is not the vision tower's 224"),
        ("vision_config.num_attention_heads", 7, "not a multiple of 7"),
        ("vision_config.norm_type", "batch_norm", "'batch_norm' is not layer_norm or rms_norm"),
        ("vision_config.hidden_act", "relu", "'relu' is not gelu"),
        ("vision_config.num_channels", 4, "num_channels 4"),
        ("vision_config.qkv_bias", "yes", "qkv_bias is 'yes', not of type bool"),
        ("downsample_ratio", 0.3, "do not divide evenly"),
        ("downsample_ratio", 1 / 64, "do not divide evenly"),
        ("ps_version", "v1", "'v1'"),
        ("select_layer", -4, "select_layer -4"),
        ("template", "phi3-chat", "'phi3-chat' is not one of internlm2-chat"),
    ],
)
def test_refuses_by_name(path: str, value: Any, reason: str) -> None:
    with pytest.raises(VaExportError) as caught:
        spec_of(edited(path, value))
    assert reason in str(caught.value)
    assert caught.value.fix
