"""Qwen3-VL's prompt and its preprocessing.

Sources: the chat template and the settings of the published checkpoints; the processor that Qwen wrote for them
(transformers 4.57), which gives every step of a video a time and a pair of marks, in place of the marks around the
whole. Transformers 5 leaves these too (vllm-project/vllm#46817 compares both). Pictures' sizes: `config.VIDEO_PIXELS`.
"""

from __future__ import annotations

from va_export.checkpoint.chat_templates import chat_templates
from va_export.checkpoint.files import Checkpoint
from va_export.errors import VaExportError
from va_export.models.family import ModelSpec
from va_export.models.patch_prompt import IMAGE_TOKEN, MEDIUM, VIDEO_TOKEN, pixel_bounds, read_preprocessor
from va_export.models.qwen3_vl.config import IMAGE_PIXELS, VIDEO_PIXELS, deep_patches
from va_export.models.qwen3_vl.config_file import IMAGE_PREPROCESSOR, VIDEO_PREPROCESSOR, Preprocessor
from va_export.runtime.processing.patch_grid import PatchGrid

# What the templates of the Thinking checkpoints let an answer begin with, and the others' do not.
_THINKING = "<|im_start|>assistant\n<think>\n"
_CHAT = "<|im_start|>user\n{media}{question}<|im_end|>\n<|im_start|>assistant\n"
# Where a video does not say when its frames were: two frames a second, as the published settings sample.
_SECONDS_PER_GRID = 1.0


def processing(spec: ModelSpec, checkpoint: Checkpoint, bos_token_id: int | None) -> PatchGrid:
    """How videos, images and a question become inputs of the model that `spec` describes."""
    vision, config = deep_patches(spec), spec.hf_config
    images, videos = (
        read_preprocessor(checkpoint, name, Preprocessor, vision) for name in (IMAGE_PREPROCESSOR, VIDEO_PREPROCESSOR)
    )
    for name in ("image_mean", "image_std", "resample"):
        if getattr(images, name) != getattr(videos, name):
            raise VaExportError(
                f"{name} is {getattr(images, name)} for images and {getattr(videos, name)} for videos",
                where=f"{VIDEO_PREPROCESSOR}: {name}",
                fix="take both files from one checkpoint",
            )

    def bounds(file: Preprocessor, name: str, least: int, most: int) -> tuple[int, int]:
        # A video's own limit is of all its frames together, so that none has more.
        stated = None if file.size is None else file.size.longest_edge
        return pixel_bounds(least, most, stated, vision, f"{name}: size.longest_edge")

    thinks = any(_THINKING in text for text in chat_templates(checkpoint.directory).values())
    if thinks:
        checkpoint.note("the checkpoint's answers begin with what it thinks: prompts end in <think>, as its own do.")
    return PatchGrid(
        patch_size=vision.patch_size,
        merge_size=vision.merge_size,
        frames_per_grid=vision.frames_per_grid,
        window_size=None,
        video_pixels=bounds(videos, VIDEO_PREPROCESSOR, VIDEO_PIXELS[0], vision.video_pixels),
        image_pixels=bounds(images, IMAGE_PREPROCESSOR, IMAGE_PIXELS[0], vision.image_pixels),
        mean=images.image_mean,
        std=images.image_std,
        resample=images.filter,
        frame_sampling="uniform-index",
        video_token=VIDEO_TOKEN,
        video_token_id=config["video_token_id"],
        image_token=IMAGE_TOKEN,
        image_token_id=config["image_token_id"],
        chat_template=_CHAT + ("<think>\n" if thinks else ""),
        video_template="{placeholders}",
        image_template=MEDIUM,
        tokens_per_second=1.0,  # each step of a video stands alone: nothing is counted by it
        seconds_per_grid=_SECONDS_PER_GRID,
        stop_token_ids=spec.eos_token_ids,
        bos_token_id=bos_token_id,
        position_side=vision.position_side,
        step_template=f"<{{seconds}} seconds>{MEDIUM}",
    )
