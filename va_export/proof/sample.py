"""The sample that proves a bundle: real frames and a prompt about them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from va_export.errors import VaExportError
from va_export.proof.reference import Sample
from va_export.runtime.tokenizer import load_tokenizer
from va_export.runtime.video import is_by_rate, read_frames, sample_clip

if TYPE_CHECKING:
    from va_export.export.recipe import ExportOptions, Recipe
    from va_export.models.family import ModelSpec
    from va_export.runtime.processing.fixed_frames import Processing

# Lengths of the made-up text around the frames where there is no tokenizer.
_IDS_BEFORE, _IDS_AFTER = 8, 16


def make_sample(options: ExportOptions, processing: Processing, spec: ModelSpec, tokenizer_directory: Path) -> Sample:
    """Read the clip and make the prompt.

    Raises:
        VaExportError: no video, too few frames, a prompt that does not fit the limits, or fewer visual tokens than the
            score's settings need.
    """
    from PIL import Image

    clip = options.video if options.video is not None else sample_clip()
    rule = options.sampling or processing.frame_sampling
    most = options.recipe.limits.max_frames if is_by_rate(rule) else options.recipe.frames
    video = read_frames(clip, most, rule, allow_truncated=options.allow_truncated)
    n_frames = len(video.indices)
    _check_score_settings(options.recipe, n_frames * processing.tokens_per_frame, spec.text.hidden_size)
    size = (processing.image_size, processing.image_size)
    resized = np.stack(
        [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in video.pixels]
    )
    input_ids = _prompt(options, processing, spec, tokenizer_directory, n_frames)
    limits = options.recipe.limits
    needed = input_ids.shape[1] + options.new_tokens
    if input_ids.shape[1] > limits.max_input_len or needed > limits.max_kv_cache_capacity:
        raise VaExportError(
            f"the prompt for {n_frames} frames has {input_ids.shape[1]} tokens, and {options.new_tokens} follow: more"
            f" than max_input_len ({limits.max_input_len}) or max_kv_cache_capacity ({limits.max_kv_cache_capacity})",
            where="prompt",
            fix="lower --frames, or raise --max-input-len and --max-kv-cache-capacity",
        )
    return Sample(
        frames=resized,
        pixel_values=processing.pixel_values(video.pixels),
        input_ids=input_ids,
        is_visual=input_ids == _placeholder(spec),
        clip={
            **video.reading.as_json(),
            "frames": n_frames,
            "indices": list(video.indices),
            "timestamps": list(video.timestamps),
            "question": options.question,
        },
    )


def _check_score_settings(recipe: Recipe, n_tokens: int, hidden_size: int) -> None:
    if n_tokens < max(2, recipe.score.n_subspaces):
        raise VaExportError(
            f"the {n_tokens} visual tokens of the frames cannot form {recipe.score.n_subspaces} subspaces",
            where="--subspaces",
            fix="lower --subspaces, or raise --frames",
        )
    if recipe.score.pca_rank > min(n_tokens, hidden_size):
        raise VaExportError(
            f"{n_tokens} visual tokens of {hidden_size} features have no {recipe.score.pca_rank} principal components",
            where="--pca-rank",
            fix=f"use at most {min(n_tokens, hidden_size)}, or 0 for no projection",
        )


def _placeholder(spec: ModelSpec) -> int:
    """The image token's id; a checkpoint that does not tell it gets the last id, as tokenizers append it."""
    return spec.text.vocab_size - 1 if spec.image_token_id is None else spec.image_token_id


def _prompt(
    options: ExportOptions, processing: Processing, spec: ModelSpec, directory: Path, n_frames: int
) -> np.ndarray:
    tokenizer = load_tokenizer(directory)
    if tokenizer is not None:
        return processing.input_ids(options.question, n_frames, tokenizer)
    # No tokenizer: ids drawn from a fixed seed stand for the text, and say nothing, as the question would have.
    token = _placeholder(spec)
    text = np.random.default_rng(0).integers(0, spec.text.vocab_size - 1, _IDS_BEFORE + _IDS_AFTER)
    text[text >= token] += 1  # any id but the placeholder
    visual = np.full(n_frames * processing.tokens_per_frame, token)
    return np.concatenate([text[:_IDS_BEFORE], visual, text[_IDS_BEFORE:]])[None].astype(np.int64)
