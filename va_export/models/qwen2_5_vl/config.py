"""Qwen2.5-VL's config.json → `ModelSpec`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from va_export.checkpoint.special_tokens import as_tuple
from va_export.errors import VaExportError
from va_export.models.decoder_config import CONFIG, check_in_vocabulary, invalid, stated_theta, text_shape
from va_export.models.family import AS_IT_IS, Choices, ModelSpec, TextShape
from va_export.models.qwen2_5_vl.config_file import ConfigFile, Rope, TextConfig, VisionConfig, read_config
from va_export.models.qwen2_5_vl.windows import WindowedShape

FAMILY = "qwen2_5_vl"
# Sizes of pictures after they are resized, as the official evaluation has them: qwen-vl-utils keeps a frame of a video
# within 128 to 768 tokens, then the processor asks for 256 to 2048 (feufhd/VideoAnchor @ 9ea61fc, its Qwen wrapper).
LEAST_PIXELS, VIDEO_PIXELS, IMAGE_PIXELS = 256 * 28 * 28, 768 * 28 * 28, 2048 * 28 * 28
_EXPORTED_HEAD = "lm_head.weight"
# What may stand before the names of a checkpoint: as published, and as transformers 5 calls its modules.
_PUBLISHED = {"vision": "visual.", "text": "model."}
_NESTED = {"vision": "model.visual.", "text": "model.language_model."}


def spec_from_config(
    config: Mapping[str, Any],
    choices: Choices = AS_IT_IS,
    names: Collection[str] = (),
    stop_ids: tuple[int, ...] = (),
) -> ModelSpec:
    """See `ModelFamily.spec_from_config`.

    Args:
        names: of the checkpoint's tensors, which tell its layout; none: the published one.
        stop_ids: ids that end an answer besides the configuration's own.
    """
    file, llm = read_config(config)
    text = text_shape(llm, choices, rope_theta=stated_theta(llm.rope_theta, _ropes(llm)))
    if text.head_dim * text.num_heads != text.hidden_size:  # its classes compute it, whatever head_dim says
        raise invalid(f"head_dim {text.head_dim} is not hidden_size / num_attention_heads", "head_dim")
    vision = _vision_shape(file.vision_config, text, choices.max_pixels)
    ids = {
        name: getattr(file, name)
        for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    }
    eos = as_tuple(llm.eos_token_id)
    tokens = [*ids.items(), ("bos_token_id", llm.bos_token_id), *(("eos_token_id", number) for number in eos)]
    for name, number in tokens:
        check_in_vocabulary(name, number, text.vocab_size, f"{CONFIG}: {name}")
    if choices.image_token_id not in (None, file.video_token_id):
        raise VaExportError(
            f"the placeholder is said to be {choices.image_token_id}, config.json's video_token_id is"
            f" {file.video_token_id}",
            where="image_token_id",
            fix="leave --image-token-id out: it is for checkpoints that do not tell",
        )
    return ModelSpec(
        family=FAMILY,
        hf_config=_hf_config(file, llm, text, vision),
        text=text,
        vision=vision,
        checkpoint_layers=llm.num_hidden_layers,
        text_architecture="Qwen2_5_VLTextModel",
        prompt_template="chatml",
        image_token_id=file.video_token_id,
        eos_token_ids=tuple(sorted({*eos, *stop_ids})),
        names=_names(names, file.tie_word_embeddings),
    )


def _names(names: Collection[str], is_tied: bool) -> Mapping[str, str]:
    prefixes = _NESTED if any(name.startswith(_NESTED["vision"]) for name in names) else _PUBLISHED
    has_head = _EXPORTED_HEAD in names or not is_tied
    return {**prefixes, "head": _EXPORTED_HEAD if has_head else f"{prefixes['text']}embed_tokens.weight"}


def _ropes(llm: TextConfig) -> dict[str, Rope]:
    tables = {"rope_scaling": llm.rope_scaling, "rope_parameters": llm.rope_parameters}
    return {key: rope for key, rope in tables.items() if rope is not None}


def _mrope_section(llm: TextConfig, head_dim: int) -> list[int]:
    sections = []
    for key, rope in _ropes(llm).items():
        if others := {rope.type, rope.rope_type} - {"mrope", "default", None}:
            raise invalid(f"{key} is of type {others.pop()!r}; only 'mrope' is supported", key)
        if rope.mrope_section is not None:
            sections.append((key, rope.mrope_section))
    if not sections or any(section != sections[0][1] for _, section in sections):
        raise invalid("mrope_section is missing, or said twice in different ways", "rope_scaling.mrope_section")
    key, section = sections[0]
    if len(section) != 3 or 2 * sum(section) != head_dim:
        raise invalid(
            f"mrope_section {section} does not cut half of head_dim {head_dim} in three", f"{key}.mrope_section"
        )
    return section


def _vision_shape(vit: VisionConfig, text: TextShape, max_pixels: int | None) -> WindowedShape:
    multiple = vit.patch_size * vit.spatial_merge_size
    if vit.hidden_size % vit.num_heads or vit.hidden_size // vit.num_heads % 4:
        raise invalid(
            f"hidden_size {vit.hidden_size} does not divide into {vit.num_heads} heads that rows and columns can turn",
            "vision_config.num_heads",
        )
    if vit.window_size % multiple:
        raise invalid(f"window_size {vit.window_size} is no multiple of {multiple}", "vision_config.window_size")
    if vit.out_hidden_size != text.hidden_size:
        raise invalid(
            f"out_hidden_size {vit.out_hidden_size} is not the decoder's hidden_size {text.hidden_size}",
            "vision_config.out_hidden_size",
        )
    if any(block >= vit.depth for block in vit.fullatt_block_indexes):
        raise invalid(
            f"fullatt_block_indexes {vit.fullatt_block_indexes} go beyond {vit.depth} blocks",
            "vision_config.fullatt_block_indexes",
        )
    if max_pixels is not None and max_pixels < multiple**2:
        raise VaExportError(
            f"{max_pixels} pixels are less than one token of {multiple} × {multiple}",
            where="--max-pixels",
            fix=f"use at least {multiple**2}",
        )
    video = VIDEO_PIXELS if max_pixels is None else max_pixels
    frames = vit.temporal_patch_size
    return WindowedShape(
        hidden_size=vit.hidden_size,
        num_layers=vit.depth,
        num_heads=vit.num_heads,
        intermediate_size=vit.intermediate_size,
        positions_per_frame=-(-video // vit.patch_size**2 // frames),
        patch_size=vit.patch_size,
        merge_size=vit.spatial_merge_size,
        frames_per_grid=frames,
        window_size=vit.window_size,
        full_blocks=tuple(sorted(set(vit.fullatt_block_indexes))),
        video_pixels=video,
        image_pixels=IMAGE_PIXELS if max_pixels is None else max_pixels,
    )


def _hf_config(file: ConfigFile, llm: TextConfig, text: TextShape, vision: WindowedShape) -> dict[str, Any]:
    """Arguments of `transformers.Qwen2_5_VLConfig` that describe the same model."""
    return {
        "image_token_id": file.image_token_id,
        "video_token_id": file.video_token_id,
        "vision_start_token_id": file.vision_start_token_id,
        "tie_word_embeddings": False,  # embedding and head are two components, with the matrix in both
        "vision_config": {
            "depth": vision.num_layers,
            "hidden_act": "silu",
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_heads": vision.num_heads,
            "in_channels": 3,
            "out_hidden_size": text.hidden_size,
            "patch_size": vision.patch_size,
            "spatial_merge_size": vision.merge_size,
            "temporal_patch_size": vision.frames_per_grid,
            "tokens_per_second": int(file.vision_config.tokens_per_second),
            "window_size": vision.window_size,
            "fullatt_block_indexes": list(vision.full_blocks),
        },
        "text_config": {
            "hidden_act": "silu",
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "max_position_embeddings": text.max_position_embeddings,
            "num_attention_heads": text.num_heads,
            "num_hidden_layers": text.num_layers,
            "num_key_value_heads": text.num_kv_heads,
            "rms_norm_eps": text.rms_norm_eps,
            "vocab_size": text.vocab_size,
            "use_sliding_window": False,
            "bos_token_id": llm.bos_token_id,
            "eos_token_id": llm.eos_token_id,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": text.rope_theta,
                "mrope_section": _mrope_section(llm, text.head_dim),
            },
        },
    }
