"""Qwen3-VL's config.json → `ModelSpec`."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from va_export.checkpoint.special_tokens import as_tuple
from va_export.models.decoder_config import (
    check_tokens,
    invalid,
    refuse_another_placeholder,
    stated_theta,
    text_shape,
)
from va_export.models.family import AS_IT_IS, Choices, ModelSpec, TextShape
from va_export.models.patch_config import (
    check_tower,
    mrope_section,
    patch_sizes,
    ropes,
    text_settings,
    tower_settings,
)
from va_export.models.patch_shape import PatchShape
from va_export.models.qwen3_vl.config_file import ConfigFile, TextConfig, VisionConfig, read_config

FAMILY = "qwen3_vl"
# Pixels of a picture after it is resized. Frames as qwen-vl-utils keeps them, within 128 to 768 tokens of 32 × 32 each;
# images within 64 to 2048 tokens (published: up to 16 384, which no profile for questions about videos should hold).
VIDEO_PIXELS, IMAGE_PIXELS = (128 * 32 * 32, 768 * 32 * 32), (64 * 32 * 32, 2048 * 32 * 32)
_HEAD, _EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"


@dataclass(frozen=True)
class DeepPatchShape(PatchShape):
    """A tower whose middle blocks are read too.

    Attributes:
        position_side: of the square of learned positions.
        deep_blocks: the blocks behind which features for the decoder's first layers are taken, ascending.
    """

    position_side: int
    deep_blocks: tuple[int, ...]


def deep_patches(spec: ModelSpec) -> DeepPatchShape:
    """The vision tower of a `ModelSpec` that this family made."""
    assert isinstance(spec.vision, DeepPatchShape)
    return spec.vision


def spec_from_config(
    config: Mapping[str, Any],
    choices: Choices = AS_IT_IS,
    names: Collection[str] = (),
    stop_ids: tuple[int, ...] = (),
) -> ModelSpec:
    """See `ModelFamily.spec_from_config`.

    Args:
        names: of the checkpoint's tensors, which tell whether it has a head of its own.
        stop_ids: ids that end an answer besides the configuration's own.
    """
    file = read_config(config)
    llm = file.text_config
    theta = stated_theta(llm.rope_theta, ropes(llm), "text_config.")
    text = text_shape(llm, choices, rope_theta=theta, prefix="text_config.")
    text = replace(text, deepstack_layers=len(file.vision_config.deepstack_visual_indexes))
    vision = _vision_shape(file.vision_config, text, choices.max_pixels)
    check_tokens(
        {**file.ids, "text_config.bos_token_id": llm.bos_token_id, "text_config.eos_token_id": llm.eos_token_id},
        text.vocab_size,
    )
    refuse_another_placeholder(choices, file.video_token_id)
    has_head = _HEAD in names or not file.tie_word_embeddings
    return ModelSpec(
        family=FAMILY,
        hf_config=_hf_config(file, text, vision),
        text=text,
        vision=vision,
        checkpoint_layers=llm.num_hidden_layers,
        text_architecture="Qwen3VLTextModel",
        prompt_template="chatml",
        image_token_id=file.video_token_id,
        eos_token_ids=tuple(sorted({*as_tuple(llm.eos_token_id), *stop_ids})),
        names={"head": _HEAD if has_head else _EMBEDDING},
    )


def _mrope_section(llm: TextConfig, head_dim: int) -> list[int]:
    for key, rope in ropes(llm).items():
        if rope.mrope_interleaved is False:
            raise invalid(
                "mrope_interleaved is false: this family's axes take turns", f"text_config.{key}.mrope_interleaved"
            )
    section = mrope_section(ropes(llm), head_dim, "text_config.")
    if section[0] < max(section):
        raise invalid(
            f"mrope_section {section} has less of time than of rows or columns: they cannot take turns",
            "text_config.rope_scaling.mrope_section",
        )
    return section


def _vision_shape(vit: VisionConfig, text: TextShape, max_pixels: int | None) -> DeepPatchShape:
    check_tower(vit, text, max_pixels)
    side = math.isqrt(vit.num_position_embeddings)
    if side**2 != vit.num_position_embeddings:
        raise invalid(
            f"{vit.num_position_embeddings} learned positions fill no square", "vision_config.num_position_embeddings"
        )
    blocks = vit.deepstack_visual_indexes
    if blocks != sorted(set(blocks)) or any(block >= vit.depth for block in blocks):
        raise invalid(
            f"deepstack_visual_indexes {blocks} do not ascend within {vit.depth} blocks",
            "vision_config.deepstack_visual_indexes",
        )
    video = VIDEO_PIXELS[1] if max_pixels is None else max_pixels
    return DeepPatchShape(
        **patch_sizes(vit, video, IMAGE_PIXELS[1] if max_pixels is None else max_pixels),
        position_side=side,
        deep_blocks=tuple(blocks),
    )


def _hf_config(file: ConfigFile, text: TextShape, vision: DeepPatchShape) -> dict[str, Any]:
    """Arguments of `transformers.Qwen3VLConfig` that describe the same model."""
    llm = file.text_config
    return {
        **{key: number for key, number in file.ids.items() if number is not None},
        "tie_word_embeddings": False,  # embedding and head are two components, with the matrix in both
        "vision_config": {
            **tower_settings(vision, text.hidden_size),
            "hidden_act": file.vision_config.hidden_act,
            "num_position_embeddings": vision.position_side**2,
            "deepstack_visual_indexes": list(vision.deep_blocks),
            "rope_parameters": {"rope_type": "axial", "rope_theta": file.vision_config.rope_parameters.rope_theta},
        },
        "text_config": {
            **text_settings(text, llm),
            "head_dim": text.head_dim,
            "attention_bias": llm.attention_bias,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": text.rope_theta,
                "mrope_section": _mrope_section(llm, text.head_dim),
                "mrope_interleaved": True,
            },
        },
    }
