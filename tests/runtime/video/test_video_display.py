"""Pictures as they are shown: turned, mirrored, in the right colours."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clip_maker import CORNERS, Film, corners_of, number_of, picture, with_matrix, write_clip
from PIL import Image, ImageOps
from refusals import refused

from va_export.runtime.video import Frames, read_frames
from va_export.runtime.video.display import Orientation

ONE = 1 << 16
EIGHT = [
    (ONE, 0, 0, ONE),
    (0, ONE, -ONE, 0),
    (-ONE, 0, 0, -ONE),
    (0, -ONE, ONE, 0),
    (-ONE, 0, 0, ONE),
    (ONE, 0, 0, -ONE),
    (0, ONE, ONE, 0),
    (0, -ONE, -ONE, 0),
]
LOSSY = 6.0


def shown_by_definition(pixels: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Each pixel (p, q) put at (a p + c q, b p + d q), then everything moved to the origin (ISO 14496-12, 6.2.2)."""
    a, b, c, d = (value // ONE for value in matrix)
    height, width = pixels.shape[:2]
    places = {(p, q): (a * p + c * q, b * p + d * q) for p in range(width) for q in range(height)}
    left, top = (min(place[axis] for place in places.values()) for axis in (0, 1))
    right, bottom = (max(place[axis] for place in places.values()) for axis in (0, 1))
    shown = np.zeros((bottom - top + 1, right - left + 1, 3), dtype=pixels.dtype)
    for (p, q), (x, y) in places.items():
        shown[y - top, x - left] = pixels[q, p]
    return shown


@pytest.mark.parametrize("matrix", EIGHT)
def test_an_orientation_does_what_its_matrix_says(matrix: tuple[int, int, int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    a, b, c, d = matrix
    orientation = Orientation.of_matrix((a, b, 0, c, d, 0, 0, 0, 1 << 30))
    np.testing.assert_array_equal(orientation.apply(pixels), shown_by_definition(pixels, matrix))
    assert orientation.off_by == 0.0
    assert orientation.swap((7, 5)) == orientation.apply(pixels).shape[1::-1]


@pytest.mark.parametrize("matrix", EIGHT)
def test_a_clip_is_shown_as_its_display_matrix_says(matrix: tuple[int, int, int, int], tmp_path: Path) -> None:
    frames = read_frames(with_matrix(write_clip(tmp_path / "clip.mp4"), matrix), 4)
    expected = shown_by_definition(picture(0), matrix)
    assert frames.pixels.shape[1:] == expected.shape
    for pixels, index in zip(frames.pixels, frames.indices, strict=True):
        assert np.abs(corners_of(pixels) - corners_of(expected)).max() <= LOSSY
        assert number_of(pixels) == index
    shown = Orientation(frames.reading.rotation // 90, frames.reading.mirrored).apply(picture(0))
    np.testing.assert_array_equal(shown, expected)


@pytest.mark.parametrize(
    ("degrees", "quarters", "told"), [(0.4, 0, False), (89.5, 1, False), (182.0, 2, True), (-60.0, 3, True)]
)
def test_other_angles_become_quarter_turns_and_are_told(
    degrees: float, quarters: int, told: bool, tmp_path: Path
) -> None:
    cosine, sine = (round(ONE * value) for value in (math.cos(math.radians(degrees)), math.sin(math.radians(degrees))))
    clip = with_matrix(write_clip(tmp_path / "clip.mp4"), (cosine, sine, -sine, cosine))
    reading = read_frames(clip, 2).reading
    assert reading.rotation == 90 * quarters and not reading.mirrored
    assert bool(reading.notes) is told


def test_a_matrix_that_shows_nothing_is_none(tmp_path: Path) -> None:
    frames = read_frames(with_matrix(write_clip(tmp_path / "clip.mp4"), (0, 0, 0, 0)), 2)
    assert frames.reading.rotation == 0 and np.abs(corners_of(frames.pixels[0]) - CORNERS).max() <= LOSSY


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photographs_exif_turns_it(orientation: int, tmp_path: Path) -> None:
    image = Image.fromarray(picture(3))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "photo.jpg", exif=exif, quality=95)
    frames = read_frames(tmp_path / "photo.jpg", 1)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "photo.jpg")).convert("RGB"))
    assert np.abs(corners_of(frames.pixels[0]) - corners_of(expected)).max() <= LOSSY


WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
TAGS = {"bt709": 1, "bt601": 6, "bt2020": 9, None: 2, "reserved": 3, "ycgco": 8}  # ITU-T H.273, table 4


def yuv_of(colour: tuple[int, int, int], matrix: str, full: bool, bits: int) -> list[int]:
    """Y', Cb, Cr of a colour by the definition (ITU-T H.273, equations 38 to 49)."""
    red, green, blue = (value / 255 for value in colour)
    weight_red, weight_blue = WEIGHTS[matrix]
    luma = weight_red * red + (1 - weight_red - weight_blue) * green + weight_blue * blue
    chroma = ((blue - luma) / (2 * (1 - weight_blue)), (red - luma) / (2 * (1 - weight_red)))
    unit, top = 1 << (bits - 8), (1 << bits) - 1
    if full:
        return [round(top * luma), *(round(top * value + 128 * unit) for value in chroma)]
    return [round((219 * luma + 16) * unit), *(round((224 * value + 128) * unit) for value in chroma)]


def write_flat(path: Path, matrix: str, tag: str | None, full: bool, pix_fmt: str) -> Path:
    """Four frames, each of one of CORNERS, in YUV worked out here."""
    bits = 10 if "10" in pix_fmt else 8
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"qp": "0"})  # without loss
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        stream.codec_context.colorspace, stream.codec_context.color_range = TAGS[tag], 2 if full else 1
        for index, colour in enumerate(CORNERS):
            frame = av.VideoFrame(64, 48, pix_fmt)
            for plane, value in zip(frame.planes, yuv_of(colour, matrix, full, bits), strict=True):
                kind = np.uint8 if bits == 8 else np.uint16
                plane.update(np.full(plane.buffer_size // np.dtype(kind).itemsize, value, kind).tobytes())
            frame.colorspace, frame.color_range = TAGS[tag], 2 if full else 1
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def colour_error(frames: Frames) -> float:
    return float(np.abs(frames.pixels[:, 8:-8, 8:-8].astype(float) - np.array(CORNERS)[:, None, None]).max())


@pytest.mark.parametrize("pix_fmt", ["yuv444p", "yuv420p", "yuv420p10le"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", WEIGHTS)
def test_colours_follow_the_tags(matrix: str, full: bool, pix_fmt: str, tmp_path: Path) -> None:
    frames = read_frames(write_flat(tmp_path / "clip.mp4", matrix, matrix, full, pix_fmt), 4, "uniform-index")
    # Rounding: half a step of Y' (255/219 grey levels) and of chroma (up to 2.1 · 255/224), then that of the result.
    assert colour_error(frames) <= 3


@pytest.mark.parametrize("tag", [None, "reserved"])
def test_colours_without_a_tag_are_bt601(tag: str | None, tmp_path: Path) -> None:
    assert (
        colour_error(read_frames(write_flat(tmp_path / "clip.mp4", "bt601", tag, False, "yuv444p"), 4, "uniform-index"))
        <= 3
    )


def test_colours_that_are_not_converted_are_refused(tmp_path: Path) -> None:
    with refused("video", "yuv444p"):
        read_frames(write_flat(tmp_path / "clip.mp4", "bt601", "ycgco", False, "yuv444p"), 4)


def test_pixels_that_are_not_square_stay_unstretched(tmp_path: Path) -> None:
    """As decord 0.6.0 and OpenCV 5.0 read such a clip: 96 x 64 as stored."""
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(16, 11)
        for frame in Film(count=4).frames():
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert read_frames(tmp_path / "clip.mp4", 2).pixels.shape == (2, 64, 96, 3)


def test_hdr_is_told(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        stream = container.add_stream("libx265", rate=12, options={"x265-params": "log-level=none:transfer=smpte2084"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p10le"
        for frame in Film(pix_fmt="yuv420p10le", count=4).frames():
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert any("HDR (PQ)" in note for note in read_frames(tmp_path / "clip.mkv", 2).reading.notes)


def test_a_changing_frame_size_becomes_the_first_ones(tmp_path: Path) -> None:
    """As decord 0.6.0 and OpenCV 5.0 do. An elementary stream may start anew with another size."""
    parts = [
        write_clip(tmp_path / f"{width}.h264", Film(size=(width, height))) for width, height in ((96, 64), (64, 128))
    ]
    (tmp_path / "clip.h264").write_bytes(b"".join(part.read_bytes() for part in parts))
    frames = read_frames(tmp_path / "clip.h264", 24, "uniform-index")
    assert frames.pixels.shape == (24, 64, 96, 3)
    assert [number_of(pixels) for pixels in frames.pixels] == 2 * list(range(12))
    assert max(np.abs(corners_of(pixels) - CORNERS).max() for pixels in frames.pixels) <= LOSSY
    assert any("frame size changes" in note and "12 of 24" in note for note in frames.reading.notes)
