"""Frames and questions become inputs: pixels against the arithmetic by hand, prompts against their template."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from refusals import refused

from va_export.documents import encode
from va_export.errors import VaExportError
from va_export.runtime.processing import read_processing
from va_export.runtime.processing.fixed_frames import FixedFrames
from va_export.runtime.video import sample_frames

PROCESSING = FixedFrames(
    image_size=28,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    resample="bicubic",
    frame_sampling="segment-midpoint",
    tokens_per_frame=3,
    image_token="<ctx>",
    image_token_id=99,
    chat_template="[user]{frames}{question}[end]",
    frame_template="Frame{number}: {image}\n",
    bos_token_id=1,
    stop_token_ids=(2, 7),
)


class CharacterTokenizer:
    """One id a character, and 99 for "<ctx>"."""

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for i, part in enumerate(text.split("<ctx>")):
            ids += [99] * (i > 0) + [1000 + ord(character) for character in part]
        return ids


def random_frames(height: int, width: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def bicubic(frame: np.ndarray, size: int) -> np.ndarray:
    """Bicubic resampling, kernel (a = −0.5) widened to the scale, rounded to 8 bits after each axis: Pillow's rule."""

    def weights(length: int) -> np.ndarray:
        scale = length / size
        support = max(scale, 1.0)
        matrix = np.zeros((size, length))
        for i in range(size):
            centre = (i + 0.5) * scale
            low, high = max(int(centre - 2 * support + 0.5), 0), min(int(centre + 2 * support + 0.5), length)
            x = np.abs((np.arange(low, high) + 0.5 - centre) / support)
            near = (1.5 * x - 2.5) * x * x + 1
            far = ((-0.5 * x + 2.5) * x - 4) * x + 2
            kernel = np.where(x < 1, near, np.where(x < 2, far, 0.0))
            matrix[i, low:high] = kernel / kernel.sum()
        return matrix

    height, width, _ = frame.shape
    rows = np.clip(np.floor(np.einsum("ow,hwc->hoc", weights(width), frame.astype(float)) + 0.5), 0, 255)
    return np.clip(np.floor(np.einsum("oh,hwc->owc", weights(height), rows) + 0.5), 0, 255)


@pytest.mark.parametrize(("height", "width"), [(45, 80), (111, 89), (28, 28), (9, 500)])
def test_pixels_equal_the_arithmetic_by_hand(height: int, width: int) -> None:
    frames = random_frames(height, width)
    pixels = PROCESSING.pixel_values(frames)
    assert pixels.shape == (2, 3, 28, 28)
    assert pixels.dtype == np.float32
    for frame, got in zip(frames, pixels, strict=True):
        resized = np.asarray(Image.fromarray(frame).resize((28, 28), Image.Resampling.BICUBIC))
        expected = (resized / 255.0 - np.array(PROCESSING.mean)) / np.array(PROCESSING.std)
        np.testing.assert_allclose(got, expected.transpose(2, 0, 1), rtol=0, atol=1e-6)
        # Pillow works in fixed point: at most one of 256 steps from exact arithmetic.
        assert np.abs(bicubic(frame, 28) - resized).max() <= 1


def test_every_value_is_normalised_to_the_bit() -> None:
    """IEEE-754 float32, one operation after the other, on each of the values of each channel; frames in their order."""
    values = np.arange(28 * 28, dtype=np.uint8).reshape(28, 28)
    given = np.stack([np.stack([values + 50 * channel + frame for channel in range(3)], -1) for frame in range(20)])
    mean, std = (np.array(numbers, np.float32) for numbers in (PROCESSING.mean, PROCESSING.std))
    expected = ((given.astype(np.float32) / np.float32(255)) - mean) / std
    pixels = PROCESSING.pixel_values(given)
    assert pixels.flags.c_contiguous and len(np.unique(given)) == 256
    np.testing.assert_array_equal(pixels, expected.transpose(0, 3, 1, 2))


def test_frames_of_the_wrong_kind_are_refused() -> None:
    for frames in (
        random_frames(4, 4)[0],
        random_frames(4, 4).astype(np.float32),
        np.zeros((2, 4, 4, 1), dtype=np.uint8),
        np.zeros((0, 4, 4, 3), dtype=np.uint8),
    ):
        with pytest.raises(VaExportError) as caught:
            PROCESSING.pixel_values(frames)
        assert caught.value.where == "frames" and caught.value.fix


def test_frames_of_several_sizes_are_brought_to_one() -> None:
    """A camera or a stream may change its size midway."""
    frames = [random_frames(45, 80)[0], random_frames(9, 500)[1]]
    together = PROCESSING.pixel_values(frames)
    for frame, pixels in zip(frames, together, strict=True):
        np.testing.assert_array_equal(PROCESSING.pixel_values([frame])[0], pixels)


def test_prompt_text_and_ids() -> None:
    image = "<ctx><ctx><ctx>"
    text = PROCESSING.prompt_text("Why?", 2)
    assert text == f"[user]Frame1: {image}\nFrame2: {image}\nWhy?[end]"
    ids = PROCESSING.input_ids("Why?", 2, CharacterTokenizer())  # type: ignore[arg-type]
    assert ids.dtype == np.int64
    assert ids.tolist() == [[1, *CharacterTokenizer().encode(text)]]
    with_prefix = msgspec.structs.replace(PROCESSING, prefix_ids=(5, 6))
    assert with_prefix.input_ids("Why?", 2, CharacterTokenizer()).tolist() == [[1, 5, 6, *ids[0, 1:]]]  # type: ignore[arg-type]
    without = msgspec.structs.replace(PROCESSING, bos_token_id=None)
    assert without.input_ids("Why?", 2, CharacterTokenizer()).tolist() == [ids[0, 1:].tolist()]  # type: ignore[arg-type]


def test_braces_in_a_question_stay_text() -> None:
    for question in ("{frames} {question}", "{}", "{0} {number"):
        assert PROCESSING.prompt_text(question, 1).endswith(f"\n{question}[end]")


def test_a_question_with_the_image_token_is_refused() -> None:
    with refused("prompt", "4 tokens <ctx>", "1 frames", 3):
        PROCESSING.input_ids("what is <ctx>?", 1, CharacterTokenizer())  # type: ignore[arg-type]


def pixels(n_frames: int) -> dict[str, np.ndarray]:
    return {"pixel_values": np.zeros((n_frames, 3, 28, 28), np.float32)}


def test_a_prepared_question() -> None:
    frames = random_frames(20, 30)
    prepared = PROCESSING.prepare(frames, "Why?", CharacterTokenizer())  # type: ignore[arg-type]
    ids = PROCESSING.input_ids("Why?", 2, CharacterTokenizer())  # type: ignore[arg-type]
    np.testing.assert_array_equal(prepared.input_ids, ids)
    np.testing.assert_array_equal(prepared.is_visual, ids == 99)
    np.testing.assert_array_equal(prepared.is_scored, prepared.is_visual)
    np.testing.assert_array_equal(prepared.vision_inputs["pixel_values"], PROCESSING.pixel_values(frames))
    assert prepared.position_ids.tolist() == [[list(range(ids.shape[1]))]]
    assert prepared.next_position == prepared.length == ids.shape[1]
    assert prepared.grid is None  # three tokens a frame are no square
    four = msgspec.structs.replace(PROCESSING, tokens_per_frame=4)
    assert four.prepare(frames, "Why?", CharacterTokenizer()).grid == (2, 2, 2)  # type: ignore[arg-type]


def test_a_single_placeholder_stands_for_the_whole_clip() -> None:
    given = np.array([[1, 5, 99, 6]])
    prepared = PROCESSING.prepare_ids(given, pixels(2), max_frames=2)
    assert prepared.input_ids.tolist() == [[1, 5, *[99] * 6, 6]]
    assert prepared.is_visual.sum() == 6 and prepared.next_position == 9
    written_out = PROCESSING.prepare_ids(prepared.input_ids, pixels(2), max_frames=2)
    np.testing.assert_array_equal(written_out.input_ids, prepared.input_ids)
    one = msgspec.structs.replace(PROCESSING, tokens_per_frame=1)
    assert one.prepare_ids(given, pixels(1), max_frames=2).input_ids.tolist() == given.tolist()


@pytest.mark.parametrize("count", [0, 2, 5, 7])
def test_placeholders_that_do_not_match_the_frames_are_refused(count: int) -> None:
    ids = np.array([[1, *[99] * count, 6]])
    with pytest.raises(VaExportError) as caught:
        PROCESSING.prepare_ids(ids, pixels(2), max_frames=2)
    assert caught.value.where == "generate" and caught.value.fix
    if count:
        with pytest.raises(VaExportError):
            PROCESSING.prepare_ids(ids, {}, max_frames=2)
    else:
        assert not PROCESSING.prepare_ids(ids, {}, max_frames=2).is_visual.any()


def official_indices(frame_count: int, num_segments: int) -> list[int]:
    """The indices of the model cards' `get_index` for a whole video."""
    start_idx, end_idx = 0, frame_count - 1
    seg_size = float(end_idx - start_idx) / num_segments
    return [int(start_idx + (seg_size / 2) + np.round(seg_size * idx)) for idx in range(num_segments)]


def test_frame_indices() -> None:
    assert sample_frames("segment-midpoint", 250, 8) == [15, 46, 77, 108, 139, 171, 202, 233]
    assert sample_frames("segment-midpoint", 1, 1) == [0]
    for count in (8, 9, 16, 17, 64, 100, 101, 997):
        for wanted in (1, 2, 7, 8):
            indices = sample_frames("segment-midpoint", count, wanted)
            assert indices == official_indices(count, wanted)
            assert indices == sorted(indices)
            assert 0 <= indices[0] <= indices[-1] < count
    with refused("video", 7, 8):
        sample_frames("segment-midpoint", 7, 8)
    with refused("frames", 0):
        sample_frames("segment-midpoint", 7, 0)


def test_json_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "processing.json"
    path.write_bytes(encode(PROCESSING))
    assert read_processing(path) == PROCESSING
    assert json.loads(path.read_text())["kind"] == "fixed_frames"


ILLEGAL = [
    ("kind", "patches"),
    ("resample", "lanczos"),
    ("resample", None),
    ("frame_sampling", "uniform"),
    ("chat_template", "{frames}"),
    ("frame_template", "{image}{image}"),
    ("image_size", 0),
    ("image_size", 28.5),
    ("image_size", 2**53 + 1),
    ("tokens_per_frame", 1 << 30),
    ("image_size", True),
    ("frames", 0),
    ("tokens_per_frame", -1),
    ("std", [0.1, 0.0, 0.1]),
    ("mean", [0.1, 0.2]),
    ("image_token", ""),
    ("stop_token_ids", [2, -7]),
    ("stop_token_ids", ["2"]),
    ("bos_token_id", "1"),
    ("prefix_ids", [-1]),
    ("surplus", 1),
]


@pytest.mark.parametrize(("field", "value"), ILLEGAL)
def test_illegal_settings_are_refused_with_their_place(tmp_path: Path, field: str, value: object) -> None:
    path = tmp_path / "processing.json"
    path.write_text(json.dumps({**json.loads(encode(PROCESSING)), field: value}))
    with pytest.raises(VaExportError) as caught:
        read_processing(path)
    assert str(caught.value.where).startswith(str(path)) and caught.value.fix
    assert field in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "{}"])
def test_what_is_no_processing_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "processing.json"
    path.write_text(text)
    with pytest.raises(VaExportError) as caught:
        read_processing(path)
    assert str(caught.value.where).startswith(str(path))


def test_needs_neither_torch_nor_transformers() -> None:
    program = (
        "import sys\n"
        "import va_export.runtime.processing.fixed_frames, va_export.runtime.tokenizer, va_export.runtime.video\n"
        "heavy = {'torch', 'transformers', 'onnx', 'av', 'PIL', 'tokenizers'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
