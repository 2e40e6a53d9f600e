"""The reference: the checkpoint in PyTorch, float32, through Hugging Face's own classes, stage by stage on real frames.

Where the model does not fit into memory in float32, its weights are streamed from the checkpoint, module by module, and
the numbers are the same (`proof.streamed_reference`); which way is taken is decided here from the memory that is free.

It is written into the bundle (`reference.npz`), so that parity can be repeated where neither PyTorch nor the
checkpoint is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from va_export.bundle.arrays import read_arrays
from va_export.errors import VaExportError
from va_export.host_memory import available_memory
from va_export.models.reference_memory import reference_memory
from va_export.proof.reference_form import check_reference
from va_export.runtime.backends.decoder_parts import embedding_width
from va_export.runtime.processing import Prepared

if TYPE_CHECKING:
    from va_export.bundle.manifest import Manifest
    from va_export.export.recipe import Recipe
    from va_export.export.source import Source
    from va_export.proof.sample import Sample

Array = npt.NDArray[Any]
FILE_NAME = "reference.npz"
# anchors on, anchors off
SIDES = ((True, "anchored"), (False, "plain"))
_VISION = "vision."  # before the names of what the vision component takes


def compute_reference(
    source: Source,
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

    from va_export.anchor.gains import alphas_of_prompt, gains_from_score
    from va_export.proof.streamed_reference import StreamedReference
    from va_export.proof.whole_reference import WholeReference
    from va_export.runtime.scoring import score_visual_tokens
    from va_export.runtime.session import greedy

    prepared = sample.prepared
    if streamed is None:
        need = reference_memory(source.spec, source.weight_map, prepared.length, len(sample.frames), new_tokens)
        streamed = need.must_stream(available_memory())
    model = (StreamedReference if streamed else WholeReference)(source, on_step, new_tokens)
    with torch.no_grad():
        visual = model.visual_tokens(prepared.vision_inputs)
        embeds = model.embed(torch.from_numpy(prepared.input_ids))
        embeds = torch.nn.functional.pad(embeds, (0, visual.shape[1] - embeds.shape[2]))
        embeds[torch.from_numpy(prepared.is_visual)] = visual
        visual_tokens = visual.numpy()
        # float64: the score that the fast solver and every precision are held against
        scored = score_visual_tokens(
            visual_tokens[prepared.scored_rows, : source.spec.text.hidden_size], recipe.score, dtype="float64"
        )
        alpha_k, alpha_v = alphas_of_prompt(recipe.gains, scored.sharing_score, prepared.length)
        key_log_gain, value_gain = gains_from_score(
            scored.sharing_score, prepared.is_scored[0], prepared.length, alpha_k=alpha_k, alpha_v=alpha_v
        )
        gains = (torch.from_numpy(key_log_gain)[None], torch.from_numpy(value_gain)[None])
        sides = [gains if anchored else None for anchored, _ in SIDES]
        steps = greedy(model.prefill(embeds, prepared, sides), model.step, new_tokens)
    arrays: dict[str, Array] = {
        "frames": sample.frames,
        **_prepared_arrays(prepared),
        "visual_tokens": visual_tokens,
        "sharing_score": scored.sharing_score,
        "labels": scored.labels,
        "key_log_gain": key_log_gain,
        "value_gain": value_gain,
    }
    for row, (_, side) in enumerate(SIDES):
        arrays[f"{side}_tokens"] = np.array(steps.tokens[row], dtype=np.int64)
        arrays[f"{side}_logits"] = np.stack([logits[row] for logits in steps.logits])
    return arrays


def _prepared_arrays(prepared: Prepared) -> dict[str, Array]:
    return {
        **{f"{_VISION}{name}": value for name, value in prepared.vision_inputs.items()},
        "input_ids": prepared.input_ids,
        "is_visual": prepared.is_visual,
        "is_scored": prepared.is_scored,
        "position_ids": prepared.position_ids,
        "next_position": np.array(prepared.next_position),
        "grid": np.array(prepared.grid or (), dtype=np.int64),
    }


def prepared_of(reference: Mapping[str, Array]) -> Prepared:
    """The prompt of a reference."""
    grid = tuple(map(int, reference["grid"]))
    return Prepared(
        vision_inputs={
            name.removeprefix(_VISION): value for name, value in reference.items() if name.startswith(_VISION)
        },
        input_ids=reference["input_ids"],
        is_visual=reference["is_visual"],
        is_scored=reference["is_scored"],
        position_ids=reference["position_ids"],
        next_position=int(reference["next_position"]),
        grid=(grid[0], grid[1], grid[2]) if grid else None,
    )


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
        path, is_there = source.directory / FILE_NAME, FILE_NAME in source.data.files
    if not is_there:
        raise VaExportError(
            "the bundle holds no reference, so there is nothing to compare with",
            where=path,
            fix="export all components (without --components) to get one",
        )
    if isinstance(source, Path):
        arrays, vocab_size = read_arrays(path), None
    else:
        arrays, vocab_size = (
            read_arrays(source.held.path(FILE_NAME), _most_bytes(source)),
            source.data.model.text.vocab_size,
        )
        source.held.check(FILE_NAME)
    check_reference(arrays, path, vocab_size)
    return arrays


def _most_bytes(manifest: Manifest) -> int:
    """Bytes that the arrays of a reference can have at a bundle's limits, eight for every number."""
    limits, text = manifest.data.limits, manifest.data.model.text
    vision = manifest.component("vision")
    sizes = {name: sizes.max for ranges in vision.ranges.values() for name, sizes in ranges.items()}
    inputs = sum(
        math.prod(size if isinstance(size, int) else sizes.get(size, 1) for size in tensor.shape)
        for tensor in vision.inputs
    )
    # The frames have as many values as the pixels that are made of them; a visual token takes at least one of those.
    tokens = limits.max_kv_cache_capacity * (embedding_width(manifest) + 2)
    positions = limits.max_kv_cache_capacity * (10 + 2 * (text.vocab_size + 1))
    return 8 * (2 * inputs + tokens + positions)
