"""Videos and images in one prompt: placeholders, what is scored, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from refusals import refused
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from va_export.runtime.processing import Image, Video, read_processing
from va_export.runtime.processing.patch_grid import PatchGrid
from va_export.runtime.tokenizer import Tokenizer as BundleTokenizer
from va_export.runtime.tokenizer import load_tokenizer

VIDEO, IMAGE = 593, 592
PROCESSING = PatchGrid(
    patch_size=14,
    merge_size=2,
    frames_per_grid=2,
    window_size=112,
    video_pixels=(784, 100 * 784),
    image_pixels=(784, 200 * 784),
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    resample="bicubic",
    frame_sampling="uniform-index",
    video_token="<v>",
    video_token_id=VIDEO,
    image_token="<i>",
    image_token_id=IMAGE,
    chat_template="{media}{question}",
    video_template="[{placeholders}]",
    image_template="({placeholders})",
    tokens_per_second=2.0,
    seconds_per_grid=1.0,
    stop_token_ids=(1,),
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BundleTokenizer:
    """Letters and both placeholders."""
    vocabulary = {chr(32 + place): place for place in range(590)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fill = [f"<fill{place}>" for place in range(2)]
    made.add_special_tokens([AddedToken(token, special=True) for token in (*fill, "<i>", "<v>")])
    directory = tmp_path_factory.mktemp("tokenizer")
    made.save(str(directory / "tokenizer.json"))
    loaded = load_tokenizer(directory)
    assert loaded is not None and made.token_to_id("<v>") == VIDEO
    return loaded


def frames(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_placeholders_stand_for_each_grid_in_turn(tokenizer: BundleTokenizer) -> None:
    media = [Video(frames(5, 56, 84)), Image(frames(1, 112, 28)[0]), Video(frames(2, 28, 28), seconds_per_grid=0.5)]
    prepared = PROCESSING.prepare(media, "what?", tokenizer)
    ids = prepared.input_ids[0]
    assert (ids == VIDEO).sum() == 3 * 6 + 1 and (ids == IMAGE).sum() == 4
    assert prepared.is_visual.sum() == 23
    assert (prepared.is_scored == (prepared.input_ids == VIDEO)).all()  # with videos the images are not scored
    assert prepared.grid is None  # two videos fill no one grid
    assert prepared.vision_inputs["pixel_values"].shape == (23, 4, 1176)
    assert prepared.vision_inputs["grid_lengths"].tolist() == [24, 24, 24, 16, 4]
    assert prepared.vision_inputs["window_lengths"].sum() == 4 * 23


def test_patches_are_normalised_to_the_bit() -> None:
    """IEEE-754 float32, one operation after the other; frames of the model's own size are not resized."""
    mean, std = (0.1, 0.5, 0.7), (0.25, 0.3, 0.6)
    processing = msgspec.structs.replace(PROCESSING, mean=mean, std=std)
    given = frames(6, 56, 84)
    patches = processing.given([Video(given)])["pixel_values"].reshape(3, 2, 3, 2, 2, 3, 2, 14, 14)
    expected = (given.astype(np.float32) / np.float32(255) - np.float32(mean)) / np.float32(std)
    for place in np.ndindex(3, 2, 3, 2, 2):  # grid, row and column of the block, row and column in it
        grid, down, right, row, column = place
        top, left = 14 * (2 * down + row), 14 * (2 * right + column)
        cut = expected[2 * grid : 2 * grid + 2, top : top + 14, left : left + 14]  # [frames, 14, 14, C]
        np.testing.assert_array_equal(patches[place], cut.transpose(3, 0, 1, 2))


def test_images_alone_are_scored(tokenizer: BundleTokenizer) -> None:
    prepared = PROCESSING.prepare([Image(frames(1, 56, 56)[0])], "what?", tokenizer)
    assert prepared.is_scored.sum() == 4 and prepared.grid == (1, 2, 2)


def test_one_placeholder_stands_for_a_whole_video(tokenizer: BundleTokenizer) -> None:
    clip = frames(4, 56, 84)
    whole = PROCESSING.prepare(clip, "what?", tokenizer)
    short = PROCESSING.input_ids("what?", 4, tokenizer)
    assert (short == VIDEO).sum() == 1
    expanded = PROCESSING.prepare_ids(short, PROCESSING.given(clip), 4)
    assert (expanded.input_ids == whole.input_ids).all() and (expanded.position_ids == whole.position_ids).all()
    assert (PROCESSING.input_ids("what?", clip, tokenizer) == whole.input_ids).all()
    assert (PROCESSING.input_ids("what?", 0, tokenizer) != VIDEO).all()


def test_a_question_without_a_video_has_no_vision(tokenizer: BundleTokenizer) -> None:
    prepared = PROCESSING.prepare_ids(PROCESSING.input_ids("what?", 0, tokenizer), {}, 4)
    assert not prepared.vision_inputs and not prepared.is_visual.any() and prepared.next_position == prepared.length


def given(**changed: Any) -> dict[str, Any]:
    arrays: dict[str, Any] = {
        "pixel_values": np.zeros((2 * 4 * 6, 1176), np.float32),
        "grid_thw": np.array([[2, 4, 6]]),
        "seconds_per_grid": [1.0],
    }
    return {name: value for name, value in {**arrays, **changed}.items() if value is not None}


IDS = np.array([[5, *[VIDEO] * 12, 6]])


def test_what_fits_is_taken() -> None:
    assert PROCESSING.prepare_ids(IDS, given(), 4).grid == (2, 2, 3)


@pytest.mark.parametrize(
    ("changed", "where", "named"),
    [
        ({"grid_thw": None}, "grid_thw", []),
        ({"pixel_values": None}, "pixel_values", []),
        ({"grid_thw": [[2, 3, 6]]}, "grid_thw", [2, 3, 6]),  # rows that cannot be merged
        ({"grid_thw": [[0, 4, 6]]}, "grid_thw", []),
        ({"grid_thw": [[2.0, 4, 6]]}, "grid_thw", []),
        ({"grid_thw": [[3, 4, 6]]}, "grid_thw", [3, 4]),  # more grids than max_frames
        ({"grid_thw": [[2, 4, 4]]}, "pixel_values", [48, 32]),
        ({"pixel_values": np.zeros((48, 1176), np.uint8)}, "pixel_values", ["uint8"]),
        ({"pixel_values": np.full((48, 1176), 300.0)}, "pixel_values", [300]),
        ({"pixel_values": np.full((48, 1176), np.nan)}, "pixel_values", []),
        ({"seconds_per_grid": [0.0]}, "seconds_per_grid", []),
        ({"seconds_per_grid": [1.0, 2.0]}, "seconds_per_grid", [2, 1]),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(changed: dict[str, Any], where: str, named: list[object]) -> None:
    with refused(where, *named):
        PROCESSING.prepare_ids(IDS, given(**changed), 4)


def test_placeholders_that_do_not_fit_are_refused() -> None:
    with refused("generate", 11, 12):
        PROCESSING.prepare_ids(IDS[:, 1:][:, 1:], given(), 4)
    torn = np.array([[*[VIDEO] * 6, 5, *[VIDEO] * 6]])
    with refused("generate", 12):
        PROCESSING.prepare_ids(torn, given(), 4)
    with refused("generate", 12):
        PROCESSING.prepare_ids(IDS, {}, 4)


def test_frames_of_two_sizes_are_no_video() -> None:
    with refused("frames", 84, 56, 28):
        PROCESSING.given([frames(1, 56, 84)[0], frames(1, 28, 84)[0]])


@pytest.mark.parametrize("nothing", [None, 5, [], [None], [Video([])], [Image(None)], [Video(None)], "frames"])  # type: ignore[arg-type]
def test_what_is_no_medium_is_refused(nothing: Any) -> None:
    with refused("frames"):
        PROCESSING.given(nothing)


def test_a_question_may_not_spell_a_placeholder(tokenizer: BundleTokenizer) -> None:
    with refused("prompt", 7, 6):
        PROCESSING.prepare(frames(2, 56, 84), "<v>", tokenizer)


@pytest.mark.parametrize(
    "changed",
    [
        {"frame_sampling": "never"},
        {"chat_template": "{media}"},
        {"window_size": 100},
        {"patch_size": 0},
        {"video_pixels": (1, 10)},
        {"image_pixels": (5000, 4000)},
        {"std": (0.5, 0.0, 0.5)},
        {"image_token_id": VIDEO},
        {"stop_token_ids": (-1,)},
    ],
)
def test_what_no_model_has_is_refused(changed: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "processing.json"
    path.write_bytes(msgspec.json.encode({**msgspec.to_builtins(PROCESSING), **changed}))
    with refused(str(path)):
        read_processing(path)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "processing.json"
    path.write_bytes(msgspec.json.encode(PROCESSING))
    assert read_processing(path) == PROCESSING
