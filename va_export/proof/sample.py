"""The sample that proves a bundle: real frames and a prompt about them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from va_export.errors import VaExportError
from va_export.runtime.processing import Prepared, Video
from va_export.runtime.processing.media import Frames
from va_export.runtime.tokenizer import load_tokenizer
from va_export.runtime.video import is_by_rate, read_frames, sample_clip

if TYPE_CHECKING:
    from va_export.export.recipe import ExportOptions, Recipe
    from va_export.export.source import Source

# Lengths of the made-up text around the frames where there is no tokenizer.
_IDS_BEFORE, _IDS_AFTER = 8, 16


@dataclass(frozen=True)
class Sample:
    """What the reference and the bundle are both given.

    Attributes:
        frames: (F, H, W, 3) uint8 as the model sees them, for the report's pictures.
        prepared: the prompt.
        clip: the manifest's `video`: frames, indices, timestamps, question, and how the clip was read.
    """

    frames: npt.NDArray[np.uint8]
    prepared: Prepared
    clip: dict[str, Any]


def make_sample(options: ExportOptions, source: Source, tokenizer_directory: Path) -> Sample:
    """Read the clip and make the prompt.

    Raises:
        VaExportError: no video, too few frames, a prompt that does not fit the limits, or fewer visual tokens than the
            score's settings need.
    """
    clip = options.video if options.video is not None else sample_clip()
    processing = source.processing
    rule = options.sampling or processing.frame_sampling
    most = options.recipe.limits.max_frames if is_by_rate(rule) else options.recipe.frames
    video = read_frames(clip, most, rule, allow_truncated=options.allow_truncated)
    n_frames = len(video.indices)
    tokenizer = load_tokenizer(tokenizer_directory)
    if tokenizer is not None:
        prepared = processing.prepare(Video(video.pixels, timestamps=video.timestamps), options.question, tokenizer)
    else:
        prepared = _without_tokenizer(source, video.pixels, options.recipe.limits.max_frames)
    _check_score_settings(options.recipe, int(prepared.is_scored.sum()), source.spec.text.hidden_size)
    limits, length = options.recipe.limits, prepared.length
    if length > limits.max_input_len or length + options.new_tokens > limits.max_kv_cache_capacity:
        raise VaExportError(
            f"the prompt for {n_frames} frames has {length} tokens, and {options.new_tokens} follow: more"
            f" than max_input_len ({limits.max_input_len}) or max_kv_cache_capacity ({limits.max_kv_cache_capacity})",
            where="prompt",
            fix="lower --frames, or raise --max-input-len and --max-kv-cache-capacity",
        )
    return Sample(
        frames=processing.resized(video.pixels),
        prepared=prepared,
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


def _without_tokenizer(source: Source, frames: Frames, max_frames: int) -> Prepared:
    """Ids drawn from a fixed seed stand for the text, and say nothing, as the question would have. A checkpoint that
    does not tell its placeholder gets the last id, as tokenizers append it."""
    spec = source.spec
    token = spec.text.vocab_size - 1 if spec.image_token_id is None else spec.image_token_id
    text = np.random.default_rng(0).integers(0, spec.text.vocab_size - 1, _IDS_BEFORE + _IDS_AFTER)
    text[text >= token] += 1  # any id but the placeholder
    given = source.processing.given(frames)
    visual = np.full(source.processing.count(given), token)
    ids = np.concatenate([text[:_IDS_BEFORE], visual, text[_IDS_BEFORE:]])[None].astype(np.int64)
    return source.processing.prepare_ids(ids, given, max_frames)
