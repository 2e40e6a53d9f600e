"""Qwen2.5-VL's prompt and its preprocessing.

Sources: chat_template.json of the published checkpoints (one user turn: videos and images, then the question); sizes of
pictures, sampling and seconds between grids as in the official evaluation (feufhd/VideoAnchor @ 9ea61fc), which always
tells the model one second a grid, whatever the clip's rate.
"""

from __future__ import annotations

from va_export.checkpoint.files import Checkpoint
from va_export.checkpoint.json_files import read_form
from va_export.errors import VaExportError
from va_export.models.checkpoint_tokenizer import PromptTokens
from va_export.models.family import ModelSpec
from va_export.models.qwen2_5_vl.config import LEAST_PIXELS
from va_export.models.qwen2_5_vl.config_file import PREPROCESSOR, PreprocessorFile
from va_export.models.qwen2_5_vl.windows import windowed
from va_export.runtime.processing.patch_grid import PatchGrid

VIDEO_TOKEN, IMAGE_TOKEN, END_OF_TURN = "<|video_pad|>", "<|image_pad|>", "<|im_end|>"
PROMPT_TOKENS = PromptTokens(
    VIDEO_TOKEN, END_OF_TURN, ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", IMAGE_TOKEN)
)
_CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{media}{question}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
_MEDIUM = "<|vision_start|>{placeholders}<|vision_end|>"
_SECONDS_PER_GRID = 1.0
# A picture that is enlarged to the least may come out above it by as much as rounding its sides up does.
_SLACK = 3


def processing(spec: ModelSpec, checkpoint: Checkpoint, bos_token_id: int | None) -> PatchGrid:
    """How videos, images and a question become inputs of the model that `spec` describes."""
    vision = windowed(spec)
    path = checkpoint.directory / PREPROCESSOR
    file = read_form(path, PreprocessorFile, what="preprocessor's configuration")
    if not path.is_file():
        checkpoint.note(f"{PREPROCESSOR} is missing: sizes, mean and deviation of the published checkpoints are taken.")
    own = {
        "patch_size": vision.patch_size,
        "merge_size": vision.merge_size,
        "temporal_patch_size": vision.frames_per_grid,
    }
    for name, value in own.items():
        if getattr(file, name) != value:
            raise VaExportError(
                f"{name} is {getattr(file, name)}, config.json's vision_config has {value}",
                where=f"{PREPROCESSOR}: {name}",
                fix="take both files from one checkpoint",
            )

    if file.max_pixels is not None and file.max_pixels < (vision.patch_size * vision.merge_size) ** 2:
        raise VaExportError(
            f"max_pixels is {file.max_pixels}, less than one token has",
            where=f"{PREPROCESSOR}: max_pixels",
            fix="take this file from the original checkpoint",
        )

    def limits(most: int) -> tuple[int, int]:
        most = most if file.max_pixels is None else min(most, file.max_pixels)
        return max(1, min(max(LEAST_PIXELS, file.min_pixels or 0), most // _SLACK)), most

    config = spec.hf_config
    return PatchGrid(
        patch_size=vision.patch_size,
        merge_size=vision.merge_size,
        frames_per_grid=vision.frames_per_grid,
        window_size=vision.window_size,
        video_pixels=limits(vision.video_pixels),
        image_pixels=limits(vision.image_pixels),
        mean=file.image_mean,
        std=file.image_std,
        resample="bicubic" if file.resample == 3 else "bilinear",
        frame_sampling="uniform-index",
        video_token=VIDEO_TOKEN,
        video_token_id=config["video_token_id"],
        image_token=IMAGE_TOKEN,
        image_token_id=config["image_token_id"],
        chat_template=_CHAT,
        video_template=_MEDIUM,
        image_template=_MEDIUM,
        tokens_per_second=config["vision_config"]["tokens_per_second"],
        seconds_per_grid=_SECONDS_PER_GRID,
        stop_token_ids=spec.eos_token_ids,
        bos_token_id=bos_token_id,
    )
