"""Qwen2.5-VL's config.json → `ModelSpec`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
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
from va_export.models.qwen2_5_vl.config_file import ConfigFile, TextConfig, VisionConfig, read_config
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
    text = text_shape(llm, choices, rope_theta=stated_theta(llm.rope_theta, ropes(llm)))
    if text.head_dim * text.num_heads != text.hidden_size:  # its classes compute it, whatever head_dim says
        raise invalid(f"head_dim {text.head_dim} is not hidden_size / num_attention_heads", "head_dim")
    vision = _vision_shape(file.vision_config, text, choices.max_pixels)
    check_tokens({**file.ids, "bos_token_id": llm.bos_token_id, "eos_token_id": llm.eos_token_id}, text.vocab_size)
    refuse_another_placeholder(choices, file.video_token_id)
    return ModelSpec(
        family=FAMILY,
        hf_config=_hf_config(file, llm, text, vision),
        text=text,
        vision=vision,
        checkpoint_layers=llm.num_hidden_layers,
        text_architecture="Qwen2_5_VLTextModel",
        prompt_template="chatml",
        image_token_id=file.video_token_id,
        eos_token_ids=tuple(sorted({*as_tuple(llm.eos_token_id), *stop_ids})),
        names=_names(names, file.tie_word_embeddings),
    )


def _names(names: Collection[str], is_tied: bool) -> Mapping[str, str]:
    prefixes = _NESTED if any(name.startswith(_NESTED["vision"]) for name in names) else _PUBLISHED
    has_head = _EXPORTED_HEAD in names or not is_tied
    return {**prefixes, "head": _EXPORTED_HEAD if has_head else f"{prefixes['text']}embed_tokens.weight"}


def _vision_shape(vit: VisionConfig, text: TextShape, max_pixels: int | None) -> WindowedShape:
    check_tower(vit, text, max_pixels)
    multiple = vit.patch_size * vit.spatial_merge_size
    if vit.window_size % multiple:
        raise invalid(f"window_size {vit.window_size} is no multiple of {multiple}", "vision_config.window_size")
    if any(block >= vit.depth for block in vit.fullatt_block_indexes):
        raise invalid(
            f"fullatt_block_indexes {vit.fullatt_block_indexes} go beyond {vit.depth} blocks",
            "vision_config.fullatt_block_indexes",
        )
    video = VIDEO_PIXELS if max_pixels is None else max_pixels
    return WindowedShape(
        **patch_sizes(vit, video, IMAGE_PIXELS if max_pixels is None else max_pixels),
        window_size=vit.window_size,
        full_blocks=tuple(sorted(set(vit.fullatt_block_indexes))),
    )


def _hf_config(file: ConfigFile, llm: TextConfig, text: TextShape, vision: WindowedShape) -> dict[str, Any]:
    """Arguments of `transformers.Qwen2_5_VLConfig` that describe the same model."""
    return {
        **{key: number for key, number in file.ids.items() if number is not None},
        "tie_word_embeddings": False,  # embedding and head are two components, with the matrix in both
        "vision_config": {
            **tower_settings(vision, text.hidden_size),
            "hidden_act": "silu",
            "tokens_per_second": int(file.vision_config.tokens_per_second),
            "window_size": vision.window_size,
            "fullatt_block_indexes": list(vision.full_blocks),
        },
        "text_config": {
            **text_settings(text, llm),
            "use_sliding_window": False,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": text.rope_theta,
                "mrope_section": mrope_section(ropes(llm), text.head_dim),
            },
        },
    }
