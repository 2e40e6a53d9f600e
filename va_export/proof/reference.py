"""The reference: the checkpoint in PyTorch, float32, through Hugging Face's own classes, stage by stage on real frames.

Where the model does not fit into memory in float32, its weights are streamed from the checkpoint, module by module, and
the numbers are the same (`report.streamed_reference`); which way is taken is decided here from the memory that is free.

It is written into the bundle (`reference.npz`), so that parity can be repeated where neither PyTorch nor the
checkpoint is.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from va_export.errors import VaExportError

if TYPE_CHECKING:
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
        clip: the manifest's `video`: frames, indices, timestamps, question, and how the clip was read.
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


def read_reference(directory: Path) -> dict[str, Array]:
    """The arrays of a bundle's reference.

    Raises:
        VaExportError: the bundle has none, or it cannot be read.
    """
    path = directory / FILE_NAME
    if not path.is_file():
        raise VaExportError(
            "the bundle holds no reference, so there is nothing to compare with",
            where=path,
            fix="export all components (without --components) to get one",
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise VaExportError(
            f"the reference cannot be read: {error}", where=path, fix="export the bundle again"
        ) from error
