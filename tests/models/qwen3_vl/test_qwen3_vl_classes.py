"""A bundle and its parts against transformers' own classes, from patches to logits."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from asked_twice import asked_twice
from command_line import va_export

from va_export.bundle.manifest import read_manifest
from va_export.checkpoint.files import Checkpoint
from va_export.models import family_for
from va_export.models.parameters import load_model
from va_export.models.qwen3_vl.tiny import write_tiny_checkpoint
from va_export.models.qwen3_vl.vision import VisionGraph, reference_tokens, vision_component
from va_export.runtime.bundle import Bundle
from va_export.runtime.processing import Image, Video
from va_export.runtime.processing.grid_positions import AXES
from va_export.runtime.processing.patch_grid import PatchGrid
from va_export.runtime.tokenizer import load_tokenizer

# Frames, height, width; 0 frames: an image.
SIZES = [
    [(4, 64, 96)],
    [(3, 96, 160)],  # an odd frame
    [(2, 32, 32)],
    [(4, 64, 96), (0, 128, 64), (2, 96, 32)],
]
# float32 on both sides; sums of the same terms in another order, four blocks and three layers deep, values of order 1
ATOL = 2e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("qwen3") / "checkpoint", seed=3)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    """Hugging Face's model as it reads the checkpoint itself, nothing of it replaced."""
    from transformers import Qwen3VLForConditionalGeneration

    return Qwen3VLForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa").train(False)


@pytest.fixture(scope="module")
def ours(folder: Path) -> Any:
    checkpoint = Checkpoint.open(folder)
    family = family_for(checkpoint.config)
    spec = family.spec_from_checkpoint(checkpoint)
    processing = family.processing(spec, checkpoint)
    assert isinstance(processing, PatchGrid)
    assert family.write_tokenizer(checkpoint, folder)
    as_they_are = msgspec.structs.replace(processing, video_pixels=(1, 1 << 20), image_pixels=(1, 1 << 20))
    return family, spec, load_model(family, spec, checkpoint), as_they_are, load_tokenizer(folder)


def media_of(sizes: Sequence[tuple[int, int, int]]) -> list[Video | Image]:
    random = np.random.default_rng(0)

    def pixels(*shape: int) -> np.ndarray:
        return random.integers(0, 256, (*shape, 3), dtype=np.uint8)

    return [Video(pixels(*size)) if size[0] else Image(pixels(*size[1:])) for size in sizes]


def their_arguments(processing: PatchGrid, media: Sequence[Video | Image], ids: np.ndarray) -> dict[str, torch.Tensor]:
    """The same prompt as their processor would give it: videos and images apart, kinds of tokens told."""
    parts: dict[str, list[np.ndarray]] = {}
    for medium in media:
        given, kind = processing.given([medium]), "video" if isinstance(medium, Video) else "image"
        parts.setdefault("pixel_values_videos" if kind == "video" else "pixel_values", []).append(given["pixel_values"])
        parts.setdefault(f"{kind}_grid_thw", []).append(given["grid_thw"])
    kinds = (ids == processing.image_token_id) + 2 * (ids == processing.video_token_id)
    arrays = {name: torch.from_numpy(np.concatenate(arrays)) for name, arrays in parts.items()}
    return {**arrays, "input_ids": torch.from_numpy(ids), "mm_token_type_ids": torch.from_numpy(kinds)}


@pytest.mark.parametrize("sizes", SIZES)
def test_the_tower_and_what_it_adds_to_layers(sizes: list[tuple[int, int, int]], ours: Any, theirs: Any) -> None:
    _, spec, model, processing, _ = ours
    inputs = processing.vision_inputs(media_of(sizes))
    tensors = [torch.from_numpy(inputs[tensor.name]) for tensor in vision_component(spec).inputs]
    with torch.no_grad():
        found = VisionGraph(model)(*tensors)
        expected = reference_tokens(theirs, tensors)
    assert found.shape == (int(inputs["pixel_values"].shape[0]), 3 * spec.text.hidden_size)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=ATOL)


@pytest.mark.parametrize("sizes", SIZES)
def test_positions_are_theirs_and_those_of_an_own_count(
    sizes: list[tuple[int, int, int]], ours: Any, theirs: Any
) -> None:
    _, _, _, processing, tokenizer = ours
    media = media_of(sizes)
    prepared = processing.prepare(media, "where?", tokenizer)
    arguments = their_arguments(processing, media, prepared.input_ids)
    grids = {name: arguments[name] for name in ("image_grid_thw", "video_grid_thw") if name in arguments}
    positions, offset = theirs.model.get_rope_index(arguments["input_ids"], arguments["mm_token_type_ids"], **grids)
    assert (prepared.position_ids == positions.numpy()).all()
    assert prepared.next_position == prepared.length + int(offset)
    # By hand: text and steps of videos one after the other; a step or an image takes as much as its longer side.
    expected, place = [], 0
    steps = [(h // 2, w // 2) for t, h, w in processing.given(media)["grid_thw"].tolist() for _ in range(t)]
    for is_visual, run in itertools.groupby(prepared.is_visual[0]):
        length = len(list(run))
        if not is_visual:
            expected += [(place + i,) * AXES for i in range(length)]
            place += length
            continue
        rows, columns = steps.pop(0)
        assert length == rows * columns
        expected += [(place, place + row, place + column) for row in range(rows) for column in range(columns)]
        place += max(rows, columns)
    assert prepared.position_ids[:, 0].T.tolist() == [list(each) for each in expected] and not steps


@pytest.fixture(scope="module")
def bundle(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In shards of a layer, so that features for the next layers travel between them; proved as it is exported."""
    directory = tmp_path_factory.mktemp("bundle") / "bundle"
    options = ("--subspaces", 4, "--fp32", "--onnx-only", "--latency-iterations", 0, "--new-tokens", 3)
    options += ("--max-pixels", 65536, "--decoder-shards", 3)
    outcome = va_export("--output", directory, "--model", folder, *options)
    assert outcome.code == 0, outcome.stderr
    components = read_manifest(directory).data.components
    widths = [components[f"decoder_{number}"].inputs[0].shape[-1] for number in range(3)]
    assert widths == [3 * 96, 2 * 96, 96]
    return directory


@pytest.mark.parametrize(
    ("backend", "attention"), [("onnxruntime", "plugin"), ("onnxruntime", "native"), ("torch", None)]
)
@pytest.mark.parametrize("sizes", [SIZES[0], SIZES[3]])
def test_answers_without_anchors_are_those_of_their_own_loop(
    sizes: list[tuple[int, int, int]], backend: str, attention: str | None, bundle: Path, theirs: Any
) -> None:
    media = media_of(sizes)
    with Bundle.open(bundle, backend, attention=attention) as opened:
        assert isinstance(opened.processing, PatchGrid)
        given = opened.processing.given(media)
        ids = opened.prompt("what moves?", frames=media)
        found = opened.generate(
            **given, input_ids=ids, max_new_tokens=6, anchors=False, return_logits=True, ignore_stop=True
        )
        arguments = their_arguments(opened.processing, media, ids)
        plain = np.zeros(ids.shape[1], np.float32), np.ones(ids.shape[1], np.float32)
        again = asked_twice(opened, ids, given, plain, found.tokens)
    state = theirs.generate(
        **arguments,
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert found.tokens.tolist() == state.sequences[0, ids.shape[1] :].tolist()
    expected = torch.cat(state.logits).numpy()
    np.testing.assert_allclose(found.logits, expected, rtol=0, atol=ATOL)
    np.testing.assert_allclose(again, expected, rtol=0, atol=ATOL)
