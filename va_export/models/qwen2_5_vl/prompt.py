"""Qwen2.5-VL's prompt and its preprocessing.

Sources: chat_template.json of the published checkpoints (one user turn: videos and images, then the question); sizes of
pictures, sampling and seconds between grids as in the official evaluation (feufhd/VideoAnchor @ 9ea61fc), which always
tells the model one second a grid, whatever the clip's rate.
"""

from __future__ import annotations

from va_export.checkpoint.files import Checkpoint
from va_export.models.family import ModelSpec
from va_export.models.patch_prompt import IMAGE_TOKEN, MEDIUM, VIDEO_TOKEN, pixel_bounds, read_preprocessor
from va_export.models.qwen2_5_vl.config import LEAST_PIXELS
from va_export.models.qwen2_5_vl.config_file import PREPROCESSOR, Preprocessor
from va_export.models.qwen2_5_vl.windows import windowed
from va_export.runtime.processing.patch_grid import PatchGrid

_CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{media}{question}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
_SECONDS_PER_GRID = 1.0


def processing(spec: ModelSpec, checkpoint: Checkpoint, bos_token_id: int | None) -> PatchGrid:
    """How videos, images and a question become inputs of the model that `spec` describes."""
    vision, config = windowed(spec), spec.hf_config
    file = read_preprocessor(checkpoint, PREPROCESSOR, Preprocessor, vision)
    least, place = max(LEAST_PIXELS, file.min_pixels or 0), f"{PREPROCESSOR}: max_pixels"
    return PatchGrid(
        patch_size=vision.patch_size,
        merge_size=vision.merge_size,
        frames_per_grid=vision.frames_per_grid,
        window_size=vision.window_size,
        video_pixels=pixel_bounds(least, vision.video_pixels, file.max_pixels, vision, place),
        image_pixels=pixel_bounds(least, vision.image_pixels, file.max_pixels, vision, place),
        mean=file.image_mean,
        std=file.image_std,
        resample=file.filter,
        frame_sampling="uniform-index",
        video_token=VIDEO_TOKEN,
        video_token_id=config["video_token_id"],
        image_token=IMAGE_TOKEN,
        image_token_id=config["image_token_id"],
        chat_template=_CHAT,
        video_template=MEDIUM,
        image_template=MEDIUM,
        tokens_per_second=config["vision_config"]["tokens_per_second"],
        seconds_per_grid=_SECONDS_PER_GRID,
        stop_token_ids=spec.eos_token_ids,
        bos_token_id=bos_token_id,
    )
