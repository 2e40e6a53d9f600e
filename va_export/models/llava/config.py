"""LLaVA's config.json, and the sizes that only its tensors tell → `ModelSpec`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from va_export.checkpoint.json_files import as_form
from va_export.checkpoint.special_tokens import as_tuple
from va_export.errors import VaExportError
from va_export.models.family import ModelSpec, TextShape
from va_export.models.llava.config_file import CONFIG, OriginalFile, TextConfig, TransformersFile, VisionConfig
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
    num_decoder_layers: int | None = None,
    image_token_id: int | None = None,
    max_pixels: int | None = None,
    shapes: Shapes | None = None,
    stop_ids: tuple[int, ...] = (),
) -> ModelSpec:
    """See `ModelFamily.spec_from_config`.

    Args:
        shapes: of the checkpoint's tensors; None: the published tower, and a head of its own unless it is tied.
        stop_ids: ids that end an answer besides the configuration's own.
    """
    if max_pixels is not None:
        raise VaExportError(
            "every frame of this model becomes the same square: there is no limit to set on its pixels",
            where="--max-pixels",
            fix="leave --max-pixels out",
        )
    layout = ORIGINAL if is_original(config) else TRANSFORMERS
    names = dict(_NAMES[layout])
    what = "model's configuration"
    if layout == ORIGINAL:
        original = as_form(dict(config), OriginalFile, what=what, where=CONFIG)
        llm = as_form(dict(config), TextConfig, what=what, where=CONFIG)
        vit = original.vision_config or _measured(shapes or {}, names["vision"])
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
        llm = as_form(dict(config.get("text_config") or {}), TextConfig, what=what, where=f"{CONFIG}: text_config")
        vit, pooling, newline = file.vision_config, "bilinear", "one_token"
        found = file.video_token_id if file.video_token_index is None else file.video_token_index
        if found is None or found >= llm.vocab_size:
            raise _invalid(f"video_token_index {found} is not in the vocabulary, {llm.vocab_size}", "video_token_index")
        placeholder, is_tied = found, file.tie_word_embeddings or llm.tie_word_embeddings
    if is_tied and names["head"] not in (shapes or {}):
        names["head"] = f"{names['text']}embed_tokens.weight"
    if image_token_id not in (None, placeholder):
        raise VaExportError(
            f"the placeholder is said to be {image_token_id}, this model's is {placeholder}",
            where="image_token_id",
            fix="leave --image-token-id out",
        )
    if vit.hidden_size % vit.num_attention_heads or vit.image_size < 2 * vit.patch_size:
        raise _invalid(
            f"a tower {vit.hidden_size} wide, {vit.num_attention_heads} heads, {vit.image_size} pixels and patches of"
            f" {vit.patch_size} does not divide evenly",
            "vision_config",
        )
    vocabulary = (shapes or {}).get(f"{names['text']}embed_tokens.weight", (llm.vocab_size,))[0]
    text = _text_shape(llm, num_decoder_layers, vocabulary)
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


def _text_shape(llm: TextConfig, num_decoder_layers: int | None, vocab_size: int) -> TextShape:
    hidden, heads, layers = llm.hidden_size, llm.num_attention_heads, llm.num_hidden_layers
    if hidden % heads or heads % llm.num_key_value_heads or hidden // heads % 2:
        raise _invalid(
            f"hidden_size {hidden}, {heads} attention heads and {llm.num_key_value_heads} key/value heads do not"
            " divide evenly into heads of even size",
            "num_attention_heads",
        )
    if num_decoder_layers is not None and not 1 <= num_decoder_layers <= layers:
        raise VaExportError(
            f"{num_decoder_layers} decoder layers asked for, the checkpoint has {layers}",
            where="num_decoder_layers",
            fix=f"choose 1 to {layers}, or leave it out for all",
        )
    said = (llm.rope_theta, None if llm.rope_parameters is None else llm.rope_parameters.rope_theta)
    thetas = {theta for theta in said if theta is not None}
    if len(thetas) != 1:
        raise _invalid(f"rope_theta is said to be {sorted(thetas) or 'nothing'}", "rope_theta")
    return TextShape(
        hidden_size=hidden,
        num_layers=num_decoder_layers or layers,
        num_heads=heads,
        num_kv_heads=llm.num_key_value_heads,
        head_dim=hidden // heads,
        intermediate_size=llm.intermediate_size,
        vocab_size=vocab_size,
        max_position_embeddings=llm.max_position_embeddings,
        rms_norm_eps=llm.rms_norm_eps,
        rope_theta=thetas.pop(),
        rope_scaling=None,
    )


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
            "hidden_size": vit.hidden_size,
            "image_size": vit.image_size,
            "intermediate_size": vit.intermediate_size,
            "num_attention_heads": vit.num_attention_heads,
            "num_hidden_layers": vit.num_hidden_layers,
            "patch_size": vit.patch_size,
            "layer_norm_eps": vit.layer_norm_eps,
            "hidden_act": vit.hidden_act,
            "vision_use_head": False,
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


def _invalid(what: str, path: str) -> VaExportError:
    """The error about the key at `path`, a dotted name."""
    return VaExportError(what, where=f"{CONFIG}: {path}", fix="use the checkpoint's original config.json")
