"""InternVL2's config.json: the published 8B configuration, and everything that is refused by name."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from refusals import refused

from va_export.errors import VaExportError
from va_export.models import family_for
from va_export.models.family import Choices, DynamicNtkScaling, ModelSpec, TextShape
from va_export.models.internvl2.config import spec_from_config
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
    return family_for(config).spec_from_config(config, Choices(layers, image_token_id))


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
        with refused("num_decoder_layers", layers, 32):
            spec_of(CONFIG_8B, layers)


def test_image_token_is_given_or_known_or_open() -> None:
    assert spec_of(CONFIG_8B, image_token_id=7).image_token_id == 7
    other = edited("llm_config.vocab_size", 1000)
    assert spec_of(other, image_token_id=999).image_token_id == 999
    assert spec_of(other).image_token_id is None
    with refused("image_token_id", 1000):
        spec_of(other, image_token_id=1000)


def test_absent_scaling_is_plain_rotary_embedding() -> None:
    spec = spec_of(edited("llm_config.rope_scaling", None))
    assert spec.text.rope_scaling is None
    assert spec.hf_config["text_config"]["rope_parameters"] == {"rope_type": "default", "rope_theta": 1e6}


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("llm_config.architectures", ["GemmaForCausalLM"], "llm_config.architectures"),
        ("llm_config.architectures", ["Qwen3MoeForCausalLM"], "llm_config.architectures"),
        ("llm_config.architectures", [None], "llm_config.architectures[0]"),
        ("llm_config", ..., ""),
        ("llm_config", [], "llm_config"),
        ("llm_config.hidden_size", 4097, "llm_config.num_attention_heads"),
        ("llm_config.hidden_size", 4096.5, "llm_config.hidden_size"),
        ("llm_config.num_key_value_heads", 5, "llm_config.num_attention_heads"),
        ("llm_config.num_attention_heads", 0, "llm_config.num_attention_heads"),
        ("llm_config.num_hidden_layers", 10**30, "llm_config.num_hidden_layers"),
        ("llm_config.vocab_size", "many", "llm_config.vocab_size"),
        ("llm_config.vocab_size", True, "llm_config.vocab_size"),
        ("llm_config.rms_norm_eps", float("nan"), "llm_config.rms_norm_eps"),
        ("llm_config.rope_theta", ..., "llm_config.rope_theta"),
        ("llm_config.rope_theta", -1.0, "llm_config.rope_theta"),
        ("llm_config.rope_theta", float("inf"), "llm_config.rope_theta"),
        ("llm_config.rope_scaling", {"type": "linear", "factor": 2.0}, "llm_config.rope_scaling"),
        ("llm_config.rope_scaling", {"type": "dynamic", "factor": 0.5}, "llm_config.rope_scaling.factor"),
        ("llm_config.rope_scaling", {"type": "dynamic"}, "llm_config.rope_scaling.factor"),
        ("llm_config.rope_scaling", {"factor": 2.0}, "llm_config.rope_scaling"),
        ("llm_config.rope_scaling", {"type": "dynamic", "rope_type": "yarn", "factor": 2.0}, "llm_config.rope_scaling"),
        (
            "llm_config.rope_scaling",
            {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 4096},
            "llm_config.rope_scaling.original_max_position_embeddings",
        ),
        ("llm_config.rope_parameters", {"rope_theta": 5e5}, "llm_config.rope_theta"),
        ("llm_config.rope_parameters", {"rope_type": "default"}, "llm_config.rope_scaling"),
        (
            "llm_config.rope_parameters",
            {"rope_type": "dynamic", "factor": 2.0, "partial_rotary_factor": 0.5},
            "llm_config.rope_parameters.partial_rotary_factor",
        ),
        ("llm_config.hidden_act", "gelu", "llm_config.hidden_act"),
        ("llm_config.bos_token_id", "1", "llm_config.bos_token_id"),
        ("llm_config.bos_token_id", [1], "llm_config.bos_token_id"),
        ("llm_config.bos_token_id", -1, "llm_config.bos_token_id"),
        ("llm_config.bos_token_id", True, "llm_config.bos_token_id"),
        ("llm_config.bos_token_id", 92553, "llm_config.bos_token_id"),
        ("llm_config.eos_token_id", [2, None], "llm_config.eos_token_id[1]"),
        ("llm_config.eos_token_id", ["2"], "llm_config.eos_token_id[0]"),
        ("llm_config.eos_token_id", [2, 92553], "llm_config.eos_token_id"),
        ("llm_config.eos_token_id", -1, "llm_config.eos_token_id"),
        ("vision_config.patch_size", 15, "vision_config"),
        ("vision_config.image_size", 224, "force_image_size"),
        ("vision_config.num_attention_heads", 7, "vision_config"),
        ("vision_config.norm_type", "batch_norm", "vision_config.norm_type"),
        ("vision_config.hidden_act", "relu", "vision_config.hidden_act"),
        ("vision_config.num_channels", 4, "vision_config.num_channels"),
        ("vision_config.qkv_bias", "yes", "vision_config.qkv_bias"),
        ("downsample_ratio", 0.3, "vision_config"),
        ("downsample_ratio", 1 / 64, "vision_config"),
        ("downsample_ratio", 5e-324, "downsample_ratio"),
        ("ps_version", "v1", "ps_version"),
        ("select_layer", -4, "select_layer"),
        ("template", "phi3-chat", "template"),
        ("system_message", 3, "system_message"),
        ("llm_config.rope_scaling", {"type": "su"}, "llm_config.original_max_position_embeddings"),
        (
            "llm_config.rope_scaling",
            {"type": "longrope", "original_max_position_embeddings": 4096, "short_factor": [1.0], "long_factor": [1.0]},
            "llm_config.rope_scaling.short_factor",
        ),
    ],
)
def test_refuses_by_name(path: str, value: Any, named: str) -> None:
    with pytest.raises(VaExportError) as caught:
        spec_of(edited(path, value))
    assert caught.value.where == (f"config.json: {named}" if named else "config.json")
    assert caught.value.fix


def test_a_tied_head_is_the_embedding_unless_the_file_has_one() -> None:
    tied = edited("llm_config.tie_word_embeddings", True)
    assert spec_of(tied).names["head"] == "language_model.model.tok_embeddings.weight"
    assert spec_of(CONFIG_8B).names["head"] == "language_model.output.weight"
    family = family_for(tied)
    both = spec_from_config(tied, names=["language_model.output.weight"])
    assert family.weight_map(both)["lm_head.weight"].checkpoint_name == "language_model.output.weight"


def test_reads_what_transformers_5_writes() -> None:
    """Both spellings of the rotary embedding, alone and together, and whole numbers that are written as real ones."""
    expected = spec_of(CONFIG_8B)
    config = edited("llm_config.rope_theta", ...)
    llm = config["llm_config"]
    del llm["rope_scaling"]
    llm["rope_parameters"] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1000000.0}
    llm |= {"dtype": "bfloat16", "head_dim": None, "mlp_bias": None, "eos_token_id": [2], "hidden_size": 4096.0}
    config |= {"dtype": "bfloat16", "force_image_size": None}
    assert spec_of(config).text == expected.text
    assert spec_of(config).eos_token_ids == expected.eos_token_ids
    llm |= {"rope_theta": 1e6, "rope_scaling": {"type": "dynamic", "rope_type": "dynamic", "factor": 2}}
    assert spec_of(config).text == expected.text


@pytest.mark.parametrize("scaling", [None, {}, {"rope_type": "default"}, {"rope_type": "default", "factor": 1.0}])
def test_no_scaling_has_several_spellings(scaling: dict[str, Any] | None) -> None:
    assert spec_of(edited("llm_config.rope_scaling", scaling)).text.rope_scaling is None


# A wrong value of every kind; some are right for some keys.
VALUES = [
    None, True, False, 0, -1, 1, 3.5, -0.0, 1e308, float("nan"), float("inf"), 10**400, "", "7", "\ud800",
    [], [None], [[1]], {}, {"x": 1}, {"llm_config": {}},
]  # fmt: skip


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """The dotted name of every entry, tables too."""
    for key, entry in value.items() if isinstance(value, dict) else ():
        yield f"{path}{key}"
        yield from leaves(entry, f"{path}{key}.")


@pytest.mark.parametrize("path", list(leaves(CONFIG_8B)))
def test_no_value_anywhere_ends_in_a_traceback(path: str) -> None:
    """Either a model, or an error that says where in the file."""
    for value in [*VALUES, ...]:
        try:
            spec = spec_of(edited(path, value))
        except VaExportError as error:
            assert str(error.where).startswith("config.json")
        else:
            assert spec.text.num_layers <= 1024


def test_what_is_not_read_may_hold_anything() -> None:
    value: Any = float("nan")
    for _ in range(3000):
        value = [value, 10**400, "\ud800"]
    assert spec_of(edited("llm_config.note", value)) == spec_of(CONFIG_8B)
    with pytest.raises(VaExportError):
        spec_of(edited("llm_config.eos_token_id", value))
