"""Qwen3-VL's config.json → `ModelSpec`."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from va_export.checkpoint.special_tokens import as_tuple
from va_export.errors import VaExportError
from va_export.models.decoder_config import CONFIG, check_in_vocabulary, invalid, stated_theta, text_shape
from va_export.models.family import AS_IT_IS, Choices, ModelSpec, TextShape
from va_export.models.patch_shape import PatchShape
from va_export.models.qwen3_vl.config_file import ConfigFile, Rope, TextConfig, VisionConfig, read_config

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
    theta = stated_theta(llm.rope_theta, _ropes(llm), "text_config.")
    text = text_shape(llm, choices, rope_theta=theta, prefix="text_config.")
    text = replace(text, deepstack_layers=len(file.vision_config.deepstack_visual_indexes))
    vision = _vision_shape(file.vision_config, text, choices.max_pixels)
    ids = {
        name: getattr(file, name)
        for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    }
    eos = as_tuple(llm.eos_token_id)
    tokens = [
        *ids.items(),
        ("text_config.bos_token_id", llm.bos_token_id),
        *(("text_config.eos_token_id", number) for number in eos),
    ]
    for name, number in tokens:
        check_in_vocabulary(name, number, text.vocab_size, f"{CONFIG}: {name}")
    if choices.image_token_id not in (None, file.video_token_id):
        raise VaExportError(
            f"the placeholder is said to be {choices.image_token_id}, config.json's video_token_id is"
            f" {file.video_token_id}",
            where="image_token_id",
            fix="leave --image-token-id out: it is for checkpoints that do not tell",
        )
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
        eos_token_ids=tuple(sorted({*eos, *stop_ids})),
        names={"head": _HEAD if has_head else _EMBEDDING},
    )


def _ropes(llm: TextConfig) -> dict[str, Rope]:
    tables = {"rope_scaling": llm.rope_scaling, "rope_parameters": llm.rope_parameters}
    return {key: rope for key, rope in tables.items() if rope is not None}


def _mrope_section(llm: TextConfig, head_dim: int) -> list[int]:
    sections = []
    for key, rope in _ropes(llm).items():
        place = f"text_config.{key}"
        if others := {rope.type, rope.rope_type} - {"mrope", "default", None}:
            raise invalid(f"{key} is of type {others.pop()!r}; only 'default' is supported", place)
        if rope.mrope_interleaved is False:
            raise invalid("mrope_interleaved is false: this family's axes take turns", f"{place}.mrope_interleaved")
        if rope.mrope_section is not None:
            sections.append((f"{place}.mrope_section", rope.mrope_section))
    if not sections or any(section != sections[0][1] for _, section in sections):
        raise invalid(
            "mrope_section is missing, or said twice in different ways", "text_config.rope_scaling.mrope_section"
        )
    place, section = sections[0]
    if len(section) != 3 or 2 * sum(section) != head_dim:
        raise invalid(f"mrope_section {section} does not cut half of head_dim {head_dim} in three", place)
    if section[0] < max(section):
        raise invalid(
            f"mrope_section {section} has less of time than of rows or columns: they cannot take turns", place
        )
    return section


def _vision_shape(vit: VisionConfig, text: TextShape, max_pixels: int | None) -> DeepPatchShape:
    multiple = vit.patch_size * vit.spatial_merge_size
    if vit.hidden_size % vit.num_heads or vit.hidden_size // vit.num_heads % 4:
        raise invalid(
            f"hidden_size {vit.hidden_size} does not divide into {vit.num_heads} heads that rows and columns can turn",
            "vision_config.num_heads",
        )
    if vit.out_hidden_size != text.hidden_size:
        raise invalid(
            f"out_hidden_size {vit.out_hidden_size} is not the decoder's hidden_size {text.hidden_size}",
            "vision_config.out_hidden_size",
        )
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
    if max_pixels is not None and max_pixels < multiple**2:
        raise VaExportError(
            f"{max_pixels} pixels are less than one token of {multiple} × {multiple}",
            where="--max-pixels",
            fix=f"use at least {multiple**2}",
        )
    video = VIDEO_PIXELS[1] if max_pixels is None else max_pixels
    return DeepPatchShape(
        hidden_size=vit.hidden_size,
        num_layers=vit.depth,
        num_heads=vit.num_heads,
        intermediate_size=vit.intermediate_size,
        positions_per_frame=-(-video // vit.patch_size**2 // vit.temporal_patch_size),
        patch_size=vit.patch_size,
        merge_size=vit.spatial_merge_size,
        frames_per_grid=vit.temporal_patch_size,
        video_pixels=video,
        image_pixels=IMAGE_PIXELS[1] if max_pixels is None else max_pixels,
        position_side=side,
        deep_blocks=tuple(blocks),
    )


def _hf_config(file: ConfigFile, text: TextShape, vision: DeepPatchShape) -> dict[str, Any]:
    """Arguments of `transformers.Qwen3VLConfig` that describe the same model."""
    llm = file.text_config
    return {
        "image_token_id": file.image_token_id,
        "video_token_id": file.video_token_id,
        "vision_start_token_id": file.vision_start_token_id,
        "vision_end_token_id": file.vision_end_token_id,
        "tie_word_embeddings": False,  # embedding and head are two components, with the matrix in both
        "vision_config": {
            "depth": vision.num_layers,
            "hidden_act": file.vision_config.hidden_act,
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_heads": vision.num_heads,
            "in_channels": 3,
            "out_hidden_size": text.hidden_size,
            "patch_size": vision.patch_size,
            "spatial_merge_size": vision.merge_size,
            "temporal_patch_size": vision.frames_per_grid,
            "num_position_embeddings": vision.position_side**2,
            "deepstack_visual_indexes": list(vision.deep_blocks),
            "rope_parameters": {"rope_type": "axial", "rope_theta": file.vision_config.rope_parameters.rope_theta},
        },
        "text_config": {
            "hidden_act": "silu",
            "hidden_size": text.hidden_size,
            "head_dim": text.head_dim,
            "intermediate_size": text.intermediate_size,
            "max_position_embeddings": text.max_position_embeddings,
            "num_attention_heads": text.num_heads,
            "num_hidden_layers": text.num_layers,
            "num_key_value_heads": text.num_kv_heads,
            "rms_norm_eps": text.rms_norm_eps,
            "vocab_size": text.vocab_size,
            "attention_bias": llm.attention_bias,
            "bos_token_id": llm.bos_token_id,
            "eos_token_id": llm.eos_token_id,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": text.rope_theta,
                "mrope_section": _mrope_section(llm, text.head_dim),
                "mrope_interleaved": True,
            },
        },
    }
