"""What a path leads to, and which stream of a file is the film."""

from __future__ import annotations

import os
import shutil
import socket
import wave
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from clip_maker import CORNERS, Film, corners_of, number_of, picture, write_clip
from PIL import Image

import va_export.runtime.video.container as container_module
from va_export.errors import VaExportError
from va_export.runtime.video import read_frames


def refused(path: Path | str) -> VaExportError:
    with pytest.raises(VaExportError) as caught:
        read_frames(path, 1)
    assert caught.value.where and caught.value.fix
    return caught.value


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


@pytest.mark.parametrize(
    "name",
    [
        "2024-01-01T12:30:00.mp4", "http:clip.mp4", "concat:a|b.mp4", "file:clip.mp4", "-i.mp4", "%03d.mp4",
        "a?b#c&d.mp4", " clip .mp4", "line\nbreak.mp4", "\N{SNOWMAN}.mp4", "caf\udce9.mp4", "no suffix", "photo.png",
        "[x]{y}~$HOME.mp4",
    ],
)  # fmt: skip
def test_any_file_name_is_a_file_name(name: str, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(clip, tmp_path / name)
    for path in (tmp_path / name, str(tmp_path / name)):
        assert read_frames(path, 2).indices == (2, 8)
    monkeypatch.chdir(tmp_path)  # relative, so that nothing stands before the name
    frames = read_frames(Path(name), 2)
    frames.reading.file.encode()  # goes into a manifest, which is UTF-8
    shutil.copy(clip, tmp_path / name.upper())
    assert read_frames(name, 2).indices == (2, 8)


def test_a_pattern_is_one_files_name(tmp_path: Path) -> None:
    """FFmpeg would take p%03d.png for the series p000.png, p001.png, …"""
    Image.fromarray(picture(1)).save(tmp_path / "p%03d.png")
    Image.fromarray(picture(5)).save(tmp_path / "p001.png")
    assert number_of(read_frames(tmp_path / "p%03d.png", 1).pixels[0]) == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("http://example.org/clip.mp4", "URL (http)"),
        (Path("https://example.org/clip.mp4"), "URL (https)"),  # pathlib makes one slash of two
        ("rtsp://camera/stream", "URL (rtsp)"),
        ("s3://bucket/clip.mp4", "URL (s3)"),
        ("file:///tmp/clip.mp4", "a file's URL"),
        ("-", "standard input"),
        ("nowhere.mp4", "no such video file"),
        ("nowhere/clip.mp4", "no such video file"),
        ("a:b.mp4", "no such video file"),
        ("nul\0l.mp4", "null"),
        ("x" * 5000, "too long"),
    ],
)
def test_what_is_no_path_is_named(
    given: Path | str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refused(given).what


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.bind(str(path))


def write_sound(path: Path) -> None:
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.mkdir(), "a directory"),
        (lambda path: os.mkfifo(path), "a pipe"),
        (make_socket, "a socket"),
        (lambda path: path.symlink_to("/dev/null"), "a device"),
        (lambda path: path.symlink_to("gone.mp4"), "leads nowhere: gone.mp4"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (lambda path: path.touch(), "empty"),
        (lambda path: path.write_text("not a video " * 100), "'not a video "),
        (lambda path: path.write_bytes(b"\xff\x00" * 5_000), "cannot be read"),
        (lambda path: path.write_text("ffconcat version 1.0\nfile clip.ts\n"), "list of files"),
        (write_sound, "no video stream"),
    ],
)  # fmt: skip
def test_what_is_no_video_is_named(make: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.ts")
    path = tmp_path / "given.mp4"
    make(path)
    error = refused(path)
    assert words in error.what and str(path) in str(error.where)


def _animated(path: Path) -> object:
    first, *others = (Image.fromarray(picture(index)) for index in range(3))
    return first.save(path, "WEBP", save_all=True, append_images=others)


def _encrypted(path: Path) -> object:
    key = "00112233445566778899aabbccddeeff"
    options = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": key, "encryption_kid": key}
    return write_clip(path.with_suffix(".mp4"), container_options=options).rename(path)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda path: path.write_text("<!DOCTYPE html>\n<title>Log in</title>"), "'<!DOCTYPE html>'"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab"), "git-lfs"),
        (lambda path: path.write_text("\ufeff" + "登录" * 200), "登录"),
        (lambda path: path.write_text("#EXTM3U\nclip.mp4\n"), "#EXTM3U"),
        (lambda path: path.write_bytes(bytes(5000)), "5000"),
        (_animated, "WebP"),
        (_encrypted, "encrypted"),
        (lambda path: path.write_text(" \n" * 9), "read"),
    ],
)
def test_what_people_take_for_a_clip_is_named(make: Callable[[Path], object], named: str, tmp_path: Path) -> None:
    make(tmp_path / "clip")
    assert named in refused(tmp_path / "clip").what


def test_a_file_that_ends_before_its_first_frame_says_so(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv")
    path.write_bytes(path.read_bytes()[:300])
    error = refused(path)
    assert "300" in error.what and "cut short" in str(error.fix)


def test_a_playlist_is_no_video(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.ts")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nclip.ts\n#EXT-X-ENDLIST\n")
    assert "list of files (hls)" in refused(tmp_path / "list.m3u8").what


def test_a_file_that_may_not_be_read_is_named(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(clip))

    monkeypatch.setattr(Path, "open", forbidden)  # root may read everything, so the mode says nothing
    assert "Permission denied" in refused(clip).what


def test_links_lead_to_their_file(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "link.mp4").symlink_to(clip)
    assert read_frames(tmp_path / "link.mp4", 2).indices == (2, 8)


COVER = Film("mjpeg", "yuvj420p", count=1, size=(300, 300), disposition=Disposition.attached_pic)


@pytest.mark.parametrize("where", ["first.mp4", "last.mp4", "attached.mkv"])
def test_a_cover_is_not_the_film(where: str, tmp_path: Path) -> None:
    Image.fromarray(picture(9, (300, 300))).save(tmp_path / "cover.jpg")
    films = {"first.mp4": (COVER, Film()), "last.mp4": (Film(), COVER), "attached.mkv": (Film(),)}[where]
    cover = (tmp_path / "cover.jpg").read_bytes() if where == "attached.mkv" else b""
    path = write_clip(tmp_path / where, *films, cover=cover)
    with av.open(str(path)) as container:
        covers = [stream.index for stream in container.streams.video if stream.disposition & Disposition.attached_pic]
    assert len(covers) == 1
    frames = read_frames(path, 12, "uniform-index")
    assert frames.reading.stream not in covers and frames.reading.notes == ()
    assert [number_of(pixels) for pixels in frames.pixels] == list(range(12))


def test_a_cover_alone_is_no_film(tmp_path: Path) -> None:
    assert "cover" in refused(write_clip(tmp_path / "clip.mp4", COVER)).what


def test_of_several_films_the_default_then_the_largest_is_taken(tmp_path: Path) -> None:
    small, large = (Film(size=size, disposition=Disposition.default) for size in ((64, 48), (128, 96)))
    frames = read_frames(write_clip(tmp_path / "clip.mp4", small, large), 2)
    assert frames.reading.stream == 1 and frames.pixels.shape[1:3] == (96, 128)
    assert any("2 films" in note for note in frames.reading.notes)
    large.disposition = Disposition.dub
    frames = read_frames(write_clip(tmp_path / "clip.mkv", large, small), 2)
    assert frames.reading.stream == 1 and frames.pixels.shape[1:3] == (48, 64)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tiff", "webp", "gif"])
def test_a_picture_is_a_clip_of_one_frame(suffix: str, tmp_path: Path) -> None:
    Image.fromarray(picture(4)).save(
        tmp_path / f"photo.{suffix}", **({"quality": 95} if suffix in ("jpg", "webp") else {})
    )
    frames = read_frames(tmp_path / f"photo.{suffix}", 1)
    assert frames.indices == (0,) and frames.timestamps == (0.0,) and number_of(frames.pixels[0]) == 4
    assert np.abs(corners_of(frames.pixels[0]) - CORNERS).max() <= (48 if suffix == "gif" else 6)


def test_frames_that_fill_the_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (8200, 8200)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 1 << 16
    assert "8200 x 8200 are larger" in refused(tmp_path / "bomb.png").what
    monkeypatch.setattr(container_module, "MOST_PIXELS", 96 * 64 - 1)
    assert "96 x 64 are larger" in refused(write_clip(tmp_path / "clip.mp4")).what
    monkeypatch.undo()
    assert read_frames(tmp_path / "clip.mp4", 1).pixels.shape == (1, 64, 96, 3)


def test_metadata_that_is_not_utf8_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "marker"
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for frame in Film(count=4).frames():
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes().replace(b"marker", b"\xff\xfe\xe9\xe9\xff\xfe"))
    assert read_frames(path, 2).reading.decoded == 4
