"""Clips of many codecs, containers and pixel formats, written here: the right pictures come out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from clip_maker import CORNERS, RATE, Film, corners_of, number_of, write_clip

from va_export.runtime.video import read_frames

# Lossy codecs at their usual quality: greatest difference of the mean of 5 x 5 pixels in a flat corner, in grey levels.
LOSSY = 6.0
# Lossless: rounding to 8 bits of YUV of limited range (219 levels), back, and each colour from three values.
EXACT_YUV = 3.0


@dataclass(frozen=True)
class Row:
    name: str
    suffix: str
    film: Film
    tolerance: float = LOSSY
    container_options: dict[str, str] = field(default_factory=dict)


QUIET = {"x265-params": "log-level=none"}
VARIABLE = (0, 1, 2, 3, 12, 13, 14, 20, 21, 40, 41, 44)

ROWS = (
    Row("h264-mp4", "mp4", Film()),
    Row("h264-faststart", "mp4", Film(), container_options={"movflags": "faststart"}),
    Row("h264-fragments", "mp4", Film(options={"g": "4"}), container_options={"movflags": "frag_keyframe+empty_moov"}),
    Row("h264-mkv", "mkv", Film()),
    Row("h264-live-mkv", "mkv", Film(), container_options={"live": "1"}),
    Row("h264-ts", "ts", Film()),
    Row("h264-flv", "flv", Film()),
    Row("h264-avi", "avi", Film()),
    Row("h264-raw", "h264", Film()),
    Row("h264-no-b-frames", "mov", Film(options={"bf": "0"})),
    Row("h264-444", "mp4", Film(pix_fmt="yuv444p")),
    Row("h264-444-odd", "mp4", Film(pix_fmt="yuv444p", size=(97, 67))),
    Row("h264-10-bit", "mp4", Film(pix_fmt="yuv420p10le")),
    Row("h264-full-range", "mp4", Film(pix_fmt="yuvj420p")),
    Row("h264-interlaced", "mp4", Film(options={"x264-params": "tff=1"})),
    Row("h264-variable-rate", "mp4", Film(ticks=VARIABLE)),
    Row("h264-variable-rate", "mkv", Film(ticks=VARIABLE)),
    Row("hevc-mp4", "mp4", Film("libx265", options=QUIET)),
    Row("hevc-10-bit", "mkv", Film("libx265", "yuv420p10le", options=QUIET)),
    Row("vp8-webm", "webm", Film("libvpx")),
    Row("vp8-hidden-frames", "webm", Film("libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "8"})),
    Row("vp9-webm", "webm", Film("libvpx-vp9")),
    Row("vp9-odd", "webm", Film("libvpx-vp9", size=(97, 67))),
    Row("vp9-alpha", "webm", Film("libvpx-vp9", "yuva420p")),
    Row("vp9-ivf", "ivf", Film("libvpx-vp9")),
    Row("av1-mp4", "mp4", Film("libsvtav1", options={"preset": "12"})),
    Row("av1-10-bit", "mkv", Film("libsvtav1", "yuv420p10le", options={"preset": "12"})),
    Row("mpeg4-avi", "avi", Film("mpeg4", options={"q": "2"})),
    Row("mpeg4-b-frames-avi", "avi", Film("mpeg4", options={"bf": "2"})),
    Row("mpeg4-mp4", "mp4", Film("mpeg4")),
    Row("mpeg2-mpg", "mpg", Film("mpeg2video", size=(96, 64))),
    Row("prores", "mov", Film("prores_ks", "yuv422p10le")),
    Row("prores-alpha", "mov", Film("prores_ks", "yuva444p10le")),
    Row("mjpeg-avi", "avi", Film("mjpeg", "yuvj420p")),
    Row("mjpeg-mov", "mov", Film("mjpeg", "yuvj422p")),
    Row("ffv1-rgb", "mkv", Film("ffv1", "bgr0"), 0.0),
    Row("ffv1-alpha", "mkv", Film("ffv1", "bgra"), 0.0),
    Row("ffv1-yuv", "avi", Film("ffv1", "yuv444p"), EXACT_YUV),
    Row("ffv1-grey", "mkv", Film("ffv1", "gray"), EXACT_YUV),
    Row("ffv1-12-bit", "mkv", Film("ffv1", "yuv444p12le"), EXACT_YUV),
    Row("qtrle-alpha", "mov", Film("qtrle", "argb"), 0.0),
    Row("png-mov", "mov", Film("png", "rgb24"), 0.0),
    Row("apng", "apng", Film("apng", "rgb24"), 0.0),
    Row("gif", "gif", Film("gif", "bgr8"), 48.0),  # 3, 3 and 2 bits a colour, dithered
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name}.{row.suffix}")
def test_the_right_pictures_come_out(row: Row, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / f"clip.{row.suffix}", row.film, container_options=row.container_options)
    frames = read_frames(clip, row.film.count, "uniform-index")
    width, height = row.film.size
    assert frames.pixels.shape == (row.film.count, height, width, 3)
    assert frames.indices == tuple(range(row.film.count))
    if row.suffix != "gif":
        assert [number_of(pixels) for pixels in frames.pixels] == list(range(row.film.count))
    colours = np.array(CORNERS, dtype=np.float64)
    if row.film.pix_fmt == "gray":
        colours = np.repeat(colours @ [0.299, 0.587, 0.114], 3).reshape(4, 3)
    for pixels in frames.pixels:
        assert np.abs(corners_of(pixels) - colours).max() <= row.tolerance
    ticks = np.array(row.film.ticks or range(row.film.count))
    # Containers round times to milliseconds at the worst, GIF to hundredths.
    np.testing.assert_allclose(frames.timestamps, ticks / RATE, atol=0.011)
    reading = frames.reading
    assert (reading.decoded, reading.truncated, reading.promised) == (row.film.count, False, None)
    assert (reading.corrupt_packets, reading.patched_frames, reading.notes) == (0, 0, ())
    assert (reading.rotation, reading.mirrored, reading.size) == (0, False, row.film.size)
