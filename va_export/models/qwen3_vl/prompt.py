"""Qwen3-VL's prompt and its preprocessing.

Sources: the chat template and the settings of the published checkpoints; the processor that Qwen wrote for them
(transformers 4.57), which gives every step of a video a time and a pair of marks, in place of the marks around the
whole. Transformers 5 leaves these too (vllm-project/vllm#46817 compares both). Pictures' sizes: `config.VIDEO_PIXELS`.
"""

from __future__ import annotations

from va_export.checkpoint.files import Checkpoint
from va_export.checkpoint.json_files import read_form
from va_export.errors import VaExportError
from va_export.models.checkpoint_tokenizer import PromptTokens
from va_export.models.family import ModelSpec
from va_export.models.qwen3_vl.config import IMAGE_PIXELS, VIDEO_PIXELS, deep_patches
from va_export.models.qwen3_vl.config_file import IMAGE_PREPROCESSOR, VIDEO_PREPROCESSOR, PreprocessorFile
from va_export.runtime.processing.patch_grid import PatchGrid

VIDEO_TOKEN, IMAGE_TOKEN, END_OF_TURN = "<|video_pad|>", "<|image_pad|>", "<|im_end|>"
PROMPT_TOKENS = PromptTokens(
    VIDEO_TOKEN, END_OF_TURN, ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", IMAGE_TOKEN)
)
_CHAT = "<|im_start|>user\n{media}{question}<|im_end|>\n<|im_start|>assistant\n"
_MEDIUM = "<|vision_start|>{placeholders}<|vision_end|>"
# Where a video does not say when its frames were: two frames a second, as the published settings sample.
_SECONDS_PER_GRID = 1.0
# A picture that is enlarged to the least may come out above it by as much as rounding its sides up does.
_SLACK = 3


def processing(spec: ModelSpec, checkpoint: Checkpoint, bos_token_id: int | None) -> PatchGrid:
    """How videos, images and a question become inputs of the model that `spec` describes."""
    vision = deep_patches(spec)
    images, videos = (_read(spec, checkpoint, name) for name in (IMAGE_PREPROCESSOR, VIDEO_PREPROCESSOR))
    for name in ("image_mean", "image_std", "resample"):
        if getattr(images, name) != getattr(videos, name):
            raise VaExportError(
                f"{name} is {getattr(images, name)} for images and {getattr(videos, name)} for videos",
                where=f"{VIDEO_PREPROCESSOR}: {name}",
                fix="take both files from one checkpoint",
            )

    def limits(usual: tuple[int, int], most: int, stated: int | None) -> tuple[int, int]:
        most = most if stated is None else min(most, stated)
        return max(1, min(usual[0], most // _SLACK)), most

    # The settings' own limits of a video are of all its frames together: the profile has such of its own.
    largest = None if images.size is None else images.size.longest_edge
    config = spec.hf_config
    return PatchGrid(
        patch_size=vision.patch_size,
        merge_size=vision.merge_size,
        frames_per_grid=vision.frames_per_grid,
        window_size=None,
        video_pixels=limits(VIDEO_PIXELS, vision.video_pixels, None),
        image_pixels=limits(IMAGE_PIXELS, vision.image_pixels, largest),
        mean=images.image_mean,
        std=images.image_std,
        resample="bicubic" if images.resample == 3 else "bilinear",
        frame_sampling="uniform-index",
        video_token=VIDEO_TOKEN,
        video_token_id=config["video_token_id"],
        image_token=IMAGE_TOKEN,
        image_token_id=config["image_token_id"],
        chat_template=_CHAT,
        video_template="{placeholders}",
        image_template=_MEDIUM,
        tokens_per_second=1.0,  # each step of a video stands alone: nothing is counted by it
        seconds_per_grid=_SECONDS_PER_GRID,
        stop_token_ids=spec.eos_token_ids,
        bos_token_id=bos_token_id,
        position_side=vision.position_side,
        step_template=f"<{{seconds}} seconds>{_MEDIUM}",
    )


def _read(spec: ModelSpec, checkpoint: Checkpoint, name: str) -> PreprocessorFile:
    """One of the two files of settings, held against the configuration."""
    vision, path = deep_patches(spec), checkpoint.directory / name
    file = read_form(path, PreprocessorFile, what="preprocessor's configuration")
    if not path.is_file():
        checkpoint.note(f"{name} is missing: sizes, mean and deviation of the published checkpoints are taken.")
    own = {
        "patch_size": vision.patch_size,
        "merge_size": vision.merge_size,
        "temporal_patch_size": vision.frames_per_grid,
    }
    for key, value in own.items():
        if path.is_file() and getattr(file, key) != value:
            raise VaExportError(
                f"{key} is {getattr(file, key)}, config.json's vision_config has {value}",
                where=f"{name}: {key}",
                fix="take both files from one checkpoint",
            )
    if file.size is not None and file.size.longest_edge < (vision.patch_size * vision.merge_size) ** 2:
        raise VaExportError(
            f"longest_edge, which counts pixels, is {file.size.longest_edge}: less than one token has",
            where=f"{name}: size.longest_edge",
            fix="take this file from the original checkpoint",
        )
    return file
