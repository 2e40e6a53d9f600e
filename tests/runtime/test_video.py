"""Frames of videos made here, losslessly, so that every frame's number can be read from its pixels."""

from __future__ import annotations

import importlib.metadata
import wave
import weakref
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

import va_export.runtime.video as video_module
from va_export.errors import VaExportError
from va_export.runtime.video import read_frames, sample_clip, sample_frames

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


def test_containers_differ_in_stating_their_count(tmp_path: Path) -> None:
    claims = [video_module._claimed_frame_count(write_video(tmp_path / f"v.{suffix}", 20)) for suffix in ("avi", "mkv")]
    assert claims == [20, 0]


@pytest.mark.parametrize("claim", [0, 5, 39, 41, 400])
def test_a_container_that_lies_about_its_count_is_decoded_again(
    claim: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "video.avi", 40)
    monkeypatch.setattr(video_module, "_claimed_frame_count", lambda _: claim)
    check(path, 40, 8)


def test_too_few_frames_says_how_many_there_are(tmp_path: Path) -> None:
    with pytest.raises(VaExportError, match="the video has 5 frames, 8 are asked for") as caught:
        read_frames(write_video(tmp_path / "short.avi", 5), 8)
    assert "short.avi" in str(caught.value)
    with pytest.raises(VaExportError, match="0 frames asked for"):
        read_frames(tmp_path / "short.avi", 0)


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VaExportError, match="no such video file"):
        read_frames(tmp_path / "nowhere.mp4", 1)
    (tmp_path / "text.mp4").write_text("not a video " * 100)
    with pytest.raises(VaExportError, match="cannot be read"):
        read_frames(tmp_path / "text.mp4", 1)
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(VaExportError, match="cannot be read"):
        read_frames(tmp_path / "empty.mp4", 1)
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    with pytest.raises(VaExportError, match="no video stream"):
        read_frames(tmp_path / "sound.wav", 1)


def test_a_video_without_frames_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "video.avi", 3)
    monkeypatch.setattr(video_module, "_frames", lambda _: iter(()))
    with pytest.raises(VaExportError, match="no frames that can be decoded"):
        read_frames(path, 2)


def test_a_truncated_video_gives_what_is_left_or_an_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "video.mkv", 60)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames = read_frames(path, 4)
    assert frames.indices[-1] < 40
    np.testing.assert_array_equal(frames.pixels, np.stack([picture(index) for index in frames.indices]))
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(VaExportError):
        read_frames(path, 4)


def test_no_more_than_the_wanted_frames_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "video.avi", 2)
    alive: weakref.WeakSet[object] = weakref.WeakSet()
    most = 0

    class FakeFrame:
        time = 0.0

        def to_ndarray(self, format: str) -> np.ndarray:
            return np.zeros((2, 2, 3), dtype=np.uint8)

    def frames(_: Path) -> Iterator[FakeFrame]:
        nonlocal most
        for _ in range(500):
            frame = FakeFrame()
            alive.add(frame)
            most = max(most, len(alive))
            yield frame

    monkeypatch.setattr(video_module, "_frames", frames)
    monkeypatch.setattr(video_module, "_claimed_frame_count", lambda _: 500)
    assert read_frames(path, 8).pixels.shape == (8, 2, 2, 3)
    assert most <= 3


def test_sample_clip_is_a_real_video() -> None:
    clip = sample_clip()
    assert clip.name == "bikes.mp4"
    frames = read_frames(clip, 8)
    assert frames.pixels.shape == (8, 272, 640, 3)
    assert frames.indices == (15, 46, 77, 108, 139, 171, 202, 233)
    assert all(later > earlier for earlier, later in zip(frames.timestamps, frames.timestamps[1:], strict=False))
    assert len({frame.tobytes() for frame in frames.pixels}) == 8


def test_sample_clip_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VaExportError, match="no clip 'cats'") as caught:
        sample_clip("cats")
    assert "bigbuckbunny" in str(caught.value.fix)

    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
    with pytest.raises(VaExportError, match="not installed"):
        sample_clip()
