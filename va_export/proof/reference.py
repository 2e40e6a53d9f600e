"""The reference: the checkpoint in PyTorch, float32, through Hugging Face's own classes, stage by stage on real frames.

Where the model does not fit into memory in float32, its weights are streamed from the checkpoint, module by module, and
the numbers are the same (`report.streamed_reference`); which way is taken is decided here from the memory that is free.

It is written into the bundle (`reference.npz`), so that parity can be repeated where neither PyTorch nor the
checkpoint is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from va_export.bundle.arrays import read_arrays
from va_export.errors import VaExportError
from va_export.runtime.processing.fixed_frames import Processing
from va_export.settings import Limits

if TYPE_CHECKING:
    from va_export.bundle.manifest import Manifest
    from va_export.checkpoint.files import Checkpoint
    from va_export.export.recipe import Recipe
    from va_export.models.family import ModelFamily, ModelSpec

Array = npt.NDArray[Any]
FILE_NAME = "reference.npz"
# anchors on, anchors off
SIDES = ((True, "anchored"), (False, "plain"))


@dataclass(frozen=True)
class Sample:
    """What the reference and the bundle are both given.

    Attributes:
        frames: (F, S, S, 3) uint8, resized, for the report's pictures.
        pixel_values: (F, 3, S, S) float32.
        input_ids: (1, S) int64.
        is_visual: (1, S), the image placeholders.
        clip: the manifest's `video`: file, frames, indices, question.
    """

    frames: npt.NDArray[np.uint8]
    pixel_values: npt.NDArray[np.float32]
    input_ids: npt.NDArray[np.int64]
    is_visual: npt.NDArray[np.bool_]
    clip: dict[str, Any]


def compute_reference(
    family: ModelFamily,
    spec: ModelSpec,
    checkpoint: Checkpoint,
    recipe: Recipe,
    sample: Sample,
    new_tokens: int,
    on_step: Callable[[int, int], None] | None = None,
    *,
    streamed: bool | None = None,
) -> dict[str, Array]:
    """Run the reference; returns the arrays of `reference.npz`.

    `{anchored,plain}_tokens` are the greedy tokens, `{…}_logits` (new_tokens, vocab) the logits that each was chosen
    from, so that teacher-forced steps of a bundle compare row by row.

    Args:
        on_step: called with (steps done, steps in all).
        streamed: whether the weights are streamed; None: when the model in float32 does not fit into the memory that is
            available now.
    """
    import torch

    from va_export.models.reference_memory import must_stream
    from va_export.proof.streamed_reference import StreamedReference
    from va_export.proof.whole_reference import WholeReference
    from va_export.runtime.scoring import score_visual_tokens

    if streamed is None:
        streamed = must_stream(spec, family.weight_map(spec), sample.input_ids.shape[1], new_tokens)
    model = (StreamedReference if streamed else WholeReference)(family, spec, checkpoint)
    with torch.no_grad():
        visual = model.visual_tokens(torch.from_numpy(sample.pixel_values))
        embeds = model.embed(torch.from_numpy(sample.input_ids))
        embeds[torch.from_numpy(sample.is_visual)] = visual
    # float64: the score that the fast solver and every precision are held against
    scored = score_visual_tokens(visual.numpy(), recipe.score, dtype="float64")
    arrays: dict[str, Array] = {
        "frames": sample.frames,
        "pixel_values": sample.pixel_values,
        "input_ids": sample.input_ids,
        "is_visual": sample.is_visual,
        "visual_tokens": visual.numpy(),
        "sharing_score": scored.sharing_score,
        "labels": scored.labels,
    }
    from va_export.anchor.gains import alphas_of_prompt, gains_from_score

    length = sample.input_ids.shape[1]
    alpha_k, alpha_v = alphas_of_prompt(recipe.gains, scored.sharing_score, length)
    arrays["key_log_gain"], arrays["value_gain"] = gains_from_score(
        scored.sharing_score,
        sample.is_visual[0],
        length,
        alpha_k=alpha_k,
        alpha_v=alpha_v,
    )
    gains = (torch.from_numpy(arrays["key_log_gain"])[None], torch.from_numpy(arrays["value_gain"])[None])
    with torch.no_grad():
        sides = model.greedy(embeds, [gains if anchored else None for anchored, _ in SIDES], new_tokens, on_step)
    for (_, side), (tokens, logits) in zip(SIDES, sides, strict=True):
        arrays[f"{side}_tokens"], arrays[f"{side}_logits"] = tokens, logits
    return arrays


def write_reference(path: Path, arrays: dict[str, Array]) -> None:
    """Write `reference.npz`."""
    np.savez_compressed(path, allow_pickle=False, **arrays)


def read_reference(source: Manifest | Path) -> dict[str, Array]:
    """The arrays of a bundle's reference.

    Args:
        source: an opened bundle, whose limits say how large the arrays can be; or the directory of one that is being
            made here.

    Raises:
        VaExportError: the bundle has none, or it cannot be read.
    """
    if isinstance(source, Path):
        path, is_there = source / FILE_NAME, (source / FILE_NAME).is_file()
    else:
        path, is_there = source.directory / FILE_NAME, FILE_NAME in source.files
    if not is_there:
        raise VaExportError(
            "the bundle holds no reference, so there is nothing to compare with",
            where=path,
            fix="export all components (without --components) to get one",
        )
    if isinstance(source, Path):
        return read_arrays(path)
    arrays = read_arrays(source.held.path(FILE_NAME), _most_bytes(source))
    source.held.check(FILE_NAME)
    return arrays


def _most_bytes(manifest: Manifest) -> int:
    """Bytes that the arrays of a reference can have at a bundle's limits, eight for every number."""
    limits = Limits.from_mapping(manifest.data["limits"], "manifest.json: limits")
    processing = Processing.from_json(manifest.text("processing.json"))
    text = manifest.data["model"]["text"]
    pixels = 2 * limits.max_frames * 3 * processing.image_size**2
    tokens = limits.max_frames * processing.tokens_per_frame * (text["hidden_size"] + 2)
    positions = limits.max_kv_cache_capacity * (4 + 2 * (text["vocab_size"] + 1))
    return int(8 * (pixels + tokens + positions))
