"""The reference: the checkpoint in PyTorch, float32, through Hugging Face's own classes, stage by stage on real frames.

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
    import torch

    from va_export.checkpoint import Checkpoint
    from va_export.models.family import ModelFamily, ModelSpec
    from va_export.recipe import Recipe

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
) -> dict[str, Array]:
    """Run the reference; returns the arrays of `reference.npz`.

    `{anchored,plain}_tokens` are the greedy tokens, `{…}_logits` (new_tokens, vocab) the logits that each was chosen
    from, so that teacher-forced steps of a bundle compare row by row.
    """
    import torch

    from va_export.runtime.scoring import score_visual_tokens

    model: Any = family.load_reference(spec, checkpoint)
    with torch.no_grad():
        features = model.model.get_image_features(torch.from_numpy(sample.pixel_values), return_dict=True)
        visual = features.pooler_output.flatten(0, 1).float()
        embeds = model.get_input_embeddings()(torch.from_numpy(sample.input_ids))
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
    for number, (anchored, side) in enumerate(SIDES):
        gains = (arrays["key_log_gain"], arrays["value_gain"]) if anchored else None
        tokens, logits = _greedy(model, embeds, gains, new_tokens)
        if on_step is not None:
            on_step(number + 1, len(SIDES))
        arrays[f"{side}_tokens"], arrays[f"{side}_logits"] = tokens, logits
    return arrays


def _greedy(
    model: Any,
    embeds: torch.Tensor,
    gains: tuple[Array, Array] | None,
    new_tokens: int,
) -> tuple[Array, Array]:
    """Prefill and greedy steps over Hugging Face's own cache."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config.text_config)
    kwargs = {}
    if gains is not None:
        kwargs = {"key_log_gain": torch.from_numpy(gains[0])[None], "value_gain": torch.from_numpy(gains[1])[None]}
    tokens, rows = [], []
    with torch.no_grad():
        for _ in range(new_tokens):
            hidden = model.model.language_model(
                inputs_embeds=embeds, past_key_values=cache, use_cache=True, **kwargs
            ).last_hidden_state
            rows.append(model.lm_head(hidden[:, -1])[0].float().numpy())
            tokens.append(int(rows[-1].argmax()))
            embeds = model.get_input_embeddings()(torch.tensor([[tokens[-1]]]))
            kwargs = {}
    return np.array(tokens, dtype=np.int64), np.stack(rows)


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
