"""LLaVA's config.json, and the sizes that only its tensors tell → `ModelSpec`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from va_export.checkpoint.json_files import as_form
from va_export.checkpoint.special_tokens import as_tuple
from va_export.models.decoder_config import (
    CONFIG,
    invalid,
    refuse_another_placeholder,
    refuse_max_pixels,
    stated_theta,
    text_shape,
)
from va_export.models.family import AS_IT_IS, Choices, ModelSpec, TextShape
from va_export.models.llava.config_file import (
    OriginalFile,
    TextConfig,
    TransformersFile,
    UnscaledTextConfig,
    VisionConfig,
)
from va_export.models.llava.pooled import PooledShape

FAMILY = "llava"
ORIGINAL, TRANSFORMERS = "LlavaQwenForCausalLM", "LlavaOnevisionForConditionalGeneration"
NO_TOKEN = -200  # what stands for the video in the original's prompts
_HEADS = 16  # of SigLIP so400m; no tensor tells
Shapes = Mapping[str, tuple[int, ...]]

# What the names of each layout begin with.
_NAMES: Mapping[str, Mapping[str, str]] = {
    ORIGINAL: {
        "vision": "model.vision_tower.vision_tower.vision_model.",
        "projector": "model.mm_projector.",
        "first": "0",
        "second": "2",
        "newline": "model.image_newline",
        "text": "model.",
        "head": "lm_head.weight",
    },
    TRANSFORMERS: {
        "vision": "vision_tower.vision_model.",
        "projector": "multi_modal_projector.",
        "first": "linear_1",
        "second": "linear_2",
        "newline": "image_newline",
        "text": "language_model.model.",
        "head": "language_model.lm_head.weight",
    },
}


def is_original(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of the original layout."""
    return ORIGINAL in (config.get("architectures") or ())


def spec_from_config(
    config: Mapping[str, Any],
    choices: Choices = AS_IT_IS,
    shapes: Shapes | None = None,
    stop_ids: tuple[int, ...] = (),
) -> ModelSpec:
    """See `ModelFamily.spec_from_config`.

    Args:
        shapes: of the checkpoint's tensors; None: the published tower, and a head of its own unless it is tied.
        stop_ids: ids that end an answer besides the configuration's own.
    """
    refuse_max_pixels(choices)
    shapes = shapes or {}
    layout = ORIGINAL if is_original(config) else TRANSFORMERS
    names = dict(_NAMES[layout])
    what = "model's configuration"
    if layout == ORIGINAL:
        original = as_form(dict(config), OriginalFile, what=what, where=CONFIG)
        llm: TextConfig = as_form(dict(config), TextConfig, what=what, where=CONFIG)
        vit = original.vision_config or _measured(shapes, names["vision"])
        pooling, newline, placeholder, is_tied = (
            original.mm_spatial_pool_mode,
            original.mm_newline_position,
            NO_TOKEN,
            llm.tie_word_embeddings,
        )
        if newline == "one_token" and "unpad" not in original.mm_patch_merge_type:
            newline = "no_token"
    else:
        file = as_form(dict(config), TransformersFile, what=what, where=CONFIG)
        llm = as_form(
            dict(config.get("text_config") or {}), UnscaledTextConfig, what=what, where=f"{CONFIG}: text_config"
        )
        vit, pooling, newline = file.vision_config, "bilinear", "one_token"
        found = file.video_token_id if file.video_token_index is None else file.video_token_index
        if found is None or found >= llm.vocab_size:
            raise invalid(f"video_token_index {found} is not in the vocabulary, {llm.vocab_size}", "video_token_index")
        placeholder, is_tied = found, file.tie_word_embeddings or llm.tie_word_embeddings
    if is_tied and names["head"] not in shapes:
        names["head"] = f"{names['text']}embed_tokens.weight"
    refuse_another_placeholder(choices, placeholder)
    if vit.hidden_size % vit.num_attention_heads or vit.image_size < 2 * vit.patch_size:
        raise invalid(
            f"a tower {vit.hidden_size} wide, {vit.num_attention_heads} heads, {vit.image_size} pixels and patches of"
            f" {vit.patch_size} does not divide evenly",
            "vision_config",
        )
    # The original's loader cuts both matrices to the tokenizer's length, and published files keep what it made.
    rows = shapes.get(f"{names['text']}embed_tokens.weight", (llm.vocab_size,))[0]
    theta = stated_theta(llm.rope_theta, {"rope_parameters": llm.rope_parameters})
    text = replace(text_shape(llm, choices, rope_theta=theta), vocab_size=rows)
    vision = PooledShape(
        hidden_size=vit.hidden_size,
        num_layers=vit.num_hidden_layers,
        num_heads=vit.num_attention_heads,
        intermediate_size=vit.intermediate_size,
        positions_per_frame=(vit.image_size // vit.patch_size) ** 2,
        image_size=vit.image_size,
        patch_size=vit.patch_size,
        pooling=pooling,
        newline=newline,
    )
    eos = as_tuple(llm.eos_token_id)
    unread = {f"{names['vision']}post_layernorm.{part}" for part in ("weight", "bias")}
    if newline == "no_token":
        unread.add(names["newline"])
    return ModelSpec(
        family=FAMILY,
        hf_config=_hf_config(vit, text, eos),
        text=text,
        vision=vision,
        checkpoint_layers=llm.num_hidden_layers,
        text_architecture="Qwen2Model",
        prompt_template="chatml",
        image_token_id=placeholder,
        eos_token_ids=tuple(sorted({*eos, *stop_ids})),
        names=names,
        unread=frozenset(unread),
        found=_found(vit) if layout == ORIGINAL and shapes else {},
    )


def _measured(shapes: Shapes, prefix: str) -> VisionConfig:
    """The tower's sizes, which the original's config.json does not say, from its tensors."""
    patch = shapes.get(f"{prefix}embeddings.patch_embedding.weight")
    positions = shapes.get(f"{prefix}embeddings.position_embedding.weight")
    width = shapes.get(f"{prefix}encoder.layers.0.mlp.fc1.weight")
    if patch is None or positions is None or width is None or len(patch) != 4:
        return VisionConfig()
    layers = {name[len(prefix) :].split(".")[2] for name in shapes if name.startswith(f"{prefix}encoder.layers.")}
    return VisionConfig(
        hidden_size=patch[0],
        image_size=math.isqrt(positions[0]) * patch[2],
        intermediate_size=width[0],
        num_attention_heads=_HEADS,
        num_hidden_layers=len(layers),
        patch_size=patch[2],
    )


def _found(vit: VisionConfig) -> dict[str, Any]:
    return {"vision_config": msgspec.to_builtins(vit)}


def _hf_config(vit: VisionConfig, text: TextShape, eos: tuple[int, ...]) -> dict[str, Any]:
    """Arguments of `transformers.LlavaOnevisionConfig` that describe the same model."""
    return {
        "image_token_index": text.vocab_size - 2,  # our graphs are told where the placeholders are
        "video_token_index": text.vocab_size - 1,
        "tie_word_embeddings": False,  # embedding and head are two components, with the matrix in both
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "vision_config": {
            "model_type": "siglip_vision_model",
            "vision_use_head": False,
            **msgspec.to_builtins(vit),
        },
        "text_config": {
            "model_type": "qwen2",
            "hidden_act": "silu",
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "max_position_embeddings": text.max_position_embeddings,
            "num_attention_heads": text.num_heads,
            "num_hidden_layers": text.num_layers,
            "num_key_value_heads": text.num_kv_heads,
            "rms_norm_eps": text.rms_norm_eps,
            "vocab_size": text.vocab_size,
            "rope_parameters": {"rope_type": "default", "rope_theta": text.rope_theta},
            "use_sliding_window": False,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": list(eos) or None,
            "pad_token_id": None,
        },
    }
