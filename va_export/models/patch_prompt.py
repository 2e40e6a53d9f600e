"""What prompts of families whose pictures keep their sizes have alike: placeholders, the tokenizer's files, and the
settings of a preprocessor.

Where there is no `tokenizer.json`, the tokenizer is byte-level, its added tokens in `tokenizer_config.json`.
"""

from __future__ import annotations

from typing import TypeVar

from va_export.checkpoint.files import Checkpoint
from va_export.checkpoint.json_files import read_form
from va_export.errors import VaExportError
from va_export.models import byte_level_bpe
from va_export.models.checkpoint_tokenizer import PromptTokens, TokenizerLayout
from va_export.models.patch_config import PreprocessorFile
from va_export.models.patch_shape import PatchShape

VIDEO_TOKEN, IMAGE_TOKEN, END_OF_TURN = "<|video_pad|>", "<|image_pad|>", "<|im_end|>"
MEDIUM = "<|vision_start|>{placeholders}<|vision_end|>"
LAYOUT = TokenizerLayout(
    PromptTokens(VIDEO_TOKEN, END_OF_TURN, ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", IMAGE_TOKEN)),
    {byte_level_bpe.VOCABULARY_FILE: byte_level_bpe.from_qwen2_files},
    (byte_level_bpe.MERGES_FILE,),
)
# A picture that is enlarged to the least may come out above it by as much as rounding its sides up does.
_SLACK = 3

File = TypeVar("File", bound=PreprocessorFile)


def read_preprocessor(checkpoint: Checkpoint, name: str, form: type[File], vision: PatchShape) -> File:
    """The settings in the file `name`, or the published ones, which is noted.

    Raises:
        VaExportError: the file is malformed, or its patches are not those of config.json.
    """
    path = checkpoint.directory / name
    file = read_form(path, form, what="preprocessor's configuration")
    if not path.is_file():
        checkpoint.note(f"{name} is missing: sizes, mean and deviation of the published checkpoints are taken.")
    own = {
        "patch_size": vision.patch_size,
        "merge_size": vision.merge_size,
        "temporal_patch_size": vision.frames_per_grid,
    }
    for key, value in own.items():
        if getattr(file, key) != value:
            raise VaExportError(
                f"{key} is {getattr(file, key)}, config.json's vision_config has {value}",
                where=f"{name}: {key}",
                fix="take both files from one checkpoint",
            )
    return file


def pixel_bounds(least: int, most: int, stated: int | None, vision: PatchShape, where: str) -> tuple[int, int]:
    """The least and the most pixels of a picture.

    Args:
        stated: the most by a preprocessor's file, if it says so in the key `where`.

    Raises:
        VaExportError: no picture of a single token would fit.
    """
    if stated is not None and stated < (vision.patch_size * vision.merge_size) ** 2:
        raise VaExportError(
            f"{stated} pixels at the most are less than one token has",
            where=where,
            fix="take this file from the original checkpoint",
        )
    most = most if stated is None else min(most, stated)
    return max(1, min(least, most // _SLACK)), most
