"""Times in the prompt, sizes and patches: against what transformers' processor computes from the same frames."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from refusals import refused

from va_export.checkpoint.files import Checkpoint
from va_export.models import family_for
from va_export.models.qwen3_vl.tiny import SPECIAL_TOKENS, write_tiny_checkpoint
from va_export.runtime.processing import Image, Video
from va_export.runtime.processing.patch_grid import PatchGrid
from va_export.runtime.processing.patches import fit_size, interpolated_positions
from va_export.runtime.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[PatchGrid, Tokenizer]:
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")
    checkpoint = Checkpoint.open(folder)
    family = family_for(checkpoint.config)
    processing = family.processing(family.spec_from_checkpoint(checkpoint), checkpoint)
    tokenizer = load_tokenizer(folder)
    assert isinstance(processing, PatchGrid) and tokenizer is not None
    return msgspec.structs.replace(processing, video_pixels=(1, 1 << 20), image_pixels=(1, 1 << 20)), tokenizer


def frames(count: int, height: int = 64, width: int = 96) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def text_of(made: tuple[PatchGrid, Tokenizer], media: Any, question: str = "Why?") -> str:
    processing, tokenizer = made
    ids = processing.prepare(media, question, tokenizer).input_ids[0].tolist()
    names = {tokenizer.token_id(token): token for token in SPECIAL_TOKENS}
    return "".join(names[number] if number >= 256 else chr(number) for number in ids)


def test_each_step_has_its_time_and_its_marks(made: tuple[PatchGrid, Tokenizer]) -> None:
    step = f"<|vision_start|>{'<|video_pad|>' * 6}<|vision_end|>"
    written = text_of(made, Video(frames(5), timestamps=[0.0, 0.5, 2.0, 2.9, 4.0]))
    expected = f"<0.2 seconds>{step}<2.5 seconds>{step}<4.0 seconds>{step}"  # 0.25, 2.45: halves as Python writes them
    assert written == f"<|im_start|>user\n{expected}Why?<|im_end|>\n<|im_start|>assistant\n"
    half = text_of(made, [Video(frames(4), seconds_per_grid=3.0), Image(frames(1)[0])])
    image = f"<|vision_start|>{'<|image_pad|>' * 6}<|vision_end|>"
    assert f"<0.8 seconds>{step}<3.8 seconds>{step}{image}Why?" in half
    assert "<0.2 seconds>" in text_of(made, frames(2))  # two frames a second


@pytest.mark.parametrize("file", ["chat_template.jinja", "chat_template.json"])
@pytest.mark.parametrize(("start", "thinks"), [(r"assistant\n<think>\n", True), (r"assistant\n", False)])
def test_a_thinking_checkpoint_is_asked_to_think(start: str, thinks: bool, file: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_tiny_checkpoint(tmp_path / "checkpoint"))
    text = f"{{{{- '<|im_start|>{start}' }}}}"
    (checkpoint.directory / file).write_text(text if file.endswith("jinja") else json.dumps({"chat_template": text}))
    family = family_for(checkpoint.config)
    processing = family.processing(family.spec_from_checkpoint(checkpoint), checkpoint)
    assert isinstance(processing, PatchGrid)
    assert processing.chat_template.endswith("assistant\n" + "<think>\n" * thinks)
    assert any("think" in note for note in checkpoint.notes) == thinks


@pytest.mark.parametrize("count", [2, 5, 8])
def test_times_are_those_of_their_processor(count: int, made: tuple[PatchGrid, Tokenizer]) -> None:
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    indices, rate = [int(index) for index in np.linspace(0, 99, count)], 23.976
    theirs = Qwen3VLProcessor._calculate_timestamps(None, list(indices), rate, 2)  # type: ignore[arg-type]
    written = text_of(made, Video(frames(count), timestamps=[index / rate for index in indices]))
    assert [f"<{seconds:.1f} seconds>" in written for seconds in theirs] == [True] * len(theirs)
    assert written.count("seconds>") == len(theirs)


@pytest.mark.parametrize(("height", "width"), [(240, 320), (33, 700), (1080, 1920), (31, 40), (500, 501)])
def test_sizes_are_those_of_their_resize_with_as_much_for_each_frame(height: int, width: int) -> None:
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

    for least, most in ((131072, 786432), (4096, 65536)):
        theirs = smart_resize(4, height, width, 2, 32, 4 * least, 4 * most)
        assert fit_size(height, width, 32, least, most) == theirs


def test_learned_positions_are_stretched_as_theirs() -> None:
    torch = pytest.importorskip("torch")
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights

    grids = [(2, 4, 6), (1, 2, 2), (1, 48, 70), (3, 34, 46)]
    places, weights = interpolated_positions(grids, 2, 48)
    expected = get_vision_interpolation_indices_and_weights(
        torch.tensor(grids), num_grid_per_side=48, mode="bilinear", align_corners=True, spatial_merge_size=2
    )
    assert (places == expected[0].numpy()).all() and (weights == expected[1].numpy()).all()


def test_what_does_not_fit_is_refused_by_name(made: tuple[PatchGrid, Tokenizer]) -> None:
    processing, tokenizer = made
    with refused("timestamps", 3, 4):
        processing.prepare(Video(frames(4), timestamps=[0.0, 1.0, 2.0]), "Why?", tokenizer)
    for wrong in ([0.0, 2.0, 1.0, 3.0], [-1.0, 0.0, 1.0, 2.0], [0.0, 1.0, float("nan"), 3.0], ["a"] * 4, 3.0):
        with refused("timestamps"):
            Video(frames(4), timestamps=wrong)  # type: ignore[arg-type]
    given = processing.given(frames(4))
    assert "seconds_per_grid" not in given
    ids = processing.input_ids("Why?", frames(4), tokenizer)
    with refused("seconds_per_grid"):
        processing.prepare_ids(ids, {**given, "seconds_per_grid": np.ones(1)}, 8)
    with refused("generate", 12):
        processing.prepare_ids(ids[:, :-40], given, 8)


def test_a_placeholder_for_each_step_is_enough(made: tuple[PatchGrid, Tokenizer]) -> None:
    """Where only the number of frames is known."""
    processing, tokenizer = made
    short = processing.input_ids("Why?", 4, tokenizer)
    assert (short == processing.video_token_id).sum() == 2
    prepared = processing.prepare_ids(short, processing.given(frames(4)), 8)
    whole = processing.prepare(frames(4), "Why?", tokenizer)
    assert (prepared.input_ids == whole.input_ids).all() and (prepared.position_ids == whole.position_ids).all()
    assert prepared.grid == whole.grid == (2, 2, 3)
