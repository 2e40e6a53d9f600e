"""Clips that are cut short or damaged are not taken for whole, and whole ones not for damaged."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from clip_maker import RATE, Film, cut, number_of, packets_of, spoil, write_clip

from va_export.errors import VaExportError
from va_export.runtime.video import Frames, read_frames

COUNT = 13  # grey levels go no further
QUIET = {"x265-params": "log-level=none"}
FRONT = {"movflags": "faststart"}


def read_all(path: Path, **options: bool) -> Frames:
    """All frames that there are."""
    return read_frames(path, 1000, "fps=1000", **options)


def refused(path: Path) -> VaExportError:
    with pytest.raises(VaExportError) as caught:
        read_all(path)
    assert caught.value.where == str(path)
    return caught.value


PROMISING = [
    ("mp4", Film(count=COUNT), FRONT),
    ("mov", Film("prores_ks", "yuv422p10le", COUNT), FRONT),
    ("mp4", Film("libx265", count=COUNT, options=QUIET), FRONT),
    ("mp4", Film(count=COUNT, options={"g": "4"}), {"movflags": "frag_keyframe+empty_moov"}),
    ("mkv", Film(count=COUNT), {}),
    ("webm", Film("libvpx-vp9", count=COUNT), {}),
    ("mkv", Film("mjpeg", "yuvj420p", COUNT), {}),
    ("avi", Film("mjpeg", "yuvj420p", COUNT), {}),
    ("avi", Film("mpeg4", count=COUNT, options={"bf": "2", "q": "1"}), {}),
    ("flv", Film(count=COUNT), {}),
    ("ivf", Film("libvpx-vp9", count=COUNT), {}),
    ("gif", Film("gif", "bgr8", COUNT), {}),
    ("wmv", Film("wmv2", count=COUNT, options={"g": "4", "q": "1"}), {"packet_size": "400"}),
]


@pytest.mark.parametrize("share", [0.5, 0.75])
@pytest.mark.parametrize(("suffix", "film", "options"), PROMISING)
def test_less_than_promised_is_an_error(
    suffix: str, film: Film, options: dict[str, str], share: float, tmp_path: Path
) -> None:
    path = write_clip(tmp_path / f"clip.{suffix}", film, container_options=options)
    places = packets_of(path)
    # Cut by the frames, not by the bytes, a third of which may be headers; in the middle of a packet.
    start, length = places[round(share * len(places))]
    path.write_bytes(path.read_bytes()[: start + length // 2])
    error = refused(path)
    assert "cut short" in error.what and "--allow-truncated" in str(error.fix)
    frames = read_all(path, allow_truncated=True)
    reading = frames.reading
    assert reading.truncated and reading.promised and reading.decoded < COUNT
    assert any("taken for the whole" in note for note in reading.notes)
    if suffix != "gif":
        assert [number_of(pixels) for pixels in frames.pixels][:4] == [0, 1, 2, 3]


def test_the_error_says_how_much_is_there(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", Film(count=COUNT, options={"bf": "0"}), container_options=FRONT)
    start, length = packets_of(path)[5]
    path.write_bytes(path.read_bytes()[: start + length])
    assert "promises 13 frames" in refused(path).what and "there: 6 (0.5 s)" in refused(path).what
    reading = read_all(path, allow_truncated=True).reading
    assert (reading.promised, reading.decoded, reading.packets, reading.corrupt_packets) == ("13 frames", 6, 6, 0)


@pytest.mark.parametrize("share", [0.3, 0.6, None, 0.99])
def test_an_mp4_without_its_index_is_named(share: float | None, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", Film(count=COUNT))
    content = path.read_bytes()
    end_of_index = content.index(b"mvex") if b"mvex" in content else content.index(b"udta")
    share = share or content.index(b"trak") / end_of_index  # inside of the index, before any of its tracks
    path.write_bytes(content[: int(share * end_of_index)])
    assert "moov" in refused(path).what


@pytest.mark.parametrize(
    ("suffix", "options"),
    [("ts", {}), ("mkv", {"live": "1"}), ("h264", {}), ("flv", {"flvflags": "no_duration_filesize"})],
)
def test_what_promises_nothing_is_whole_wherever_it_ends(suffix: str, options: dict[str, str], tmp_path: Path) -> None:
    """A recording that breaks off, a stream that was saved: there is no telling, and no alarm."""
    path = write_clip(tmp_path / f"clip.{suffix}", Film(count=COUNT, options={"bf": "0"}), container_options=options)
    start, length = packets_of(path)[8]
    path.write_bytes(path.read_bytes()[: start + (length if suffix != "ts" else 376)])
    reading = read_all(path).reading
    assert 7 <= reading.decoded <= 10 and not reading.truncated


def test_an_index_that_is_cut_loses_no_frames(tmp_path: Path) -> None:
    """AVI's index comes last, and can be done without; so can Matroska's."""
    for suffix, film in (("avi", Film("mjpeg", "yuvj420p", COUNT)), ("mkv", Film("mjpeg", "yuvj420p", COUNT))):
        path = write_clip(tmp_path / f"clip.{suffix}", film)
        start, length = packets_of(path)[-1]
        path.write_bytes(path.read_bytes()[: start + length + 20])
        assert [number_of(pixels) for pixels in read_all(path).pixels] == list(range(COUNT))


def test_an_edit_list_that_hides_frames_is_no_damage(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", Film(count=COUNT, options={"bf": "0"}))
    content = bytearray(path.read_bytes())
    place = content.index(b"elst") + 4 + 4 + 4  # version and flags, number of entries
    with av.open(str(path)) as container:
        tick = int(1 / (RATE * container.streams.video[0].time_base))
    seen_from = int.from_bytes(content[place + 4 : place + 8], "big") + 4 * tick
    content[place + 4 : place + 8] = seen_from.to_bytes(4, "big")
    path.write_bytes(content)
    frames = read_all(path)
    assert [number_of(pixels) for pixels in frames.pixels] == list(range(4, COUNT))
    assert frames.timestamps[0] == 0.0 and frames.indices == tuple(range(COUNT - 4))
    assert frames.reading.notes == () and not frames.reading.truncated


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts"])
@pytest.mark.parametrize("sound_seconds", [0.25, 4.0])
def test_sound_that_goes_on_is_no_promise(sound_seconds: float, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"clip.{suffix}"
    film = Film("mpeg4", count=12, options={"q": "2"})
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mpeg4", rate=RATE, options=film.options)
        picture.width, picture.height, picture.pix_fmt = *film.size, film.pix_fmt
        sound = container.add_stream("mp2", rate=16_000, layout="mono")
        for frame in film.frames():
            container.mux(picture.encode(frame))
        container.mux(picture.encode())
        silence = np.zeros((1, int(16_000 * sound_seconds)), dtype=np.int16)
        samples = av.AudioFrame.from_ndarray(silence, format="s16", layout="mono")
        samples.sample_rate = 16_000
        resampler = av.AudioResampler("s16", "mono", 16_000, 1152)
        for part in (*resampler.resample(samples), *resampler.resample(None)):
            container.mux(sound.encode(part))
        container.mux(sound.encode())
    reading = read_all(path).reading
    assert reading.decoded == 12 and reading.notes == ()


def test_a_still_that_stays_long_is_no_promise(tmp_path: Path) -> None:
    """A slide show: the gaps between frames are long, so the last one's may be too."""
    path = write_clip(tmp_path / "clip.mkv", Film(count=4, ticks=(0, 60, 61, 120)))
    assert read_frames(path, 4, "uniform-index").reading.notes == ()


DAMAGED = [
    ("mp4", Film(count=COUNT)),
    ("mp4", Film(count=COUNT, options={"bf": "0"})),
    ("mp4", Film("libx265", count=COUNT, options=QUIET)),
    ("mov", Film("prores_ks", "yuv422p10le", COUNT)),
    ("avi", Film("mjpeg", "yuvj420p", COUNT)),
    ("avi", Film("mpeg4", count=COUNT, options={"q": "1"})),
    ("mp4", Film("libvpx-vp9", count=COUNT)),
    ("mp4", Film("libsvtav1", count=COUNT, options={"preset": "12"})),
]


@pytest.mark.parametrize("index", [6, COUNT - 2])
@pytest.mark.parametrize(("suffix", "film"), DAMAGED)
def test_a_single_damaged_packet_is_skipped_and_told(suffix: str, film: Film, index: int, tmp_path: Path) -> None:
    path = spoil(write_clip(tmp_path / f"clip.{suffix}", film), [index])
    frames = read_all(path)
    reading = frames.reading
    assert not reading.truncated and len(reading.notes) >= 1
    assert COUNT - 2 <= reading.decoded < COUNT == reading.packets
    numbers = [number_of(pixels) for pixels in frames.pixels]
    assert numbers[0] == 0 and numbers == sorted(numbers) and numbers[-1] >= COUNT - 2


def test_frames_that_the_decoder_patches_are_counted(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", Film(count=COUNT, options={"bf": "0"}))
    start, length = packets_of(path)[6]
    content = bytearray(path.read_bytes())
    content[start + 12 : start + length] = b"\x55" * (length - 12)  # its head stays, so it decodes, to nonsense
    path.write_bytes(content)
    reading = read_all(path).reading
    assert (reading.decoded, reading.corrupt_packets, reading.patched_frames) == (COUNT, 0, 1)
    assert any("1 of 13" in note for note in reading.notes)


@pytest.mark.parametrize(("suffix", "film"), DAMAGED)
def test_a_tail_of_zeros_is_cut_short(suffix: str, film: Film, tmp_path: Path) -> None:
    """A download into a file that was made as long as it would be."""
    path = spoil(write_clip(tmp_path / f"clip.{suffix}", film), range(7, COUNT))
    assert "--allow-truncated" in str(refused(path).fix)
    reading = read_all(path, allow_truncated=True).reading
    assert reading.truncated and 5 <= reading.decoded <= 8


@pytest.mark.parametrize(("suffix", "film"), DAMAGED)
def test_a_clip_of_which_nothing_is_whole_is_an_error(suffix: str, film: Film, tmp_path: Path) -> None:
    path = write_clip(tmp_path / f"clip.{suffix}", film)
    content, noise = bytearray(path.read_bytes()), np.random.default_rng(0)
    for start, length in packets_of(path):
        content[start + 8 : start + length] = noise.bytes(length - 8)
    path.write_bytes(content)
    refused(path)


def test_many_damaged_packets_are_an_error(tmp_path: Path) -> None:
    path = spoil(write_clip(tmp_path / "clip.avi", Film("mjpeg", "yuvj420p", COUNT)), range(1, COUNT, 3))
    assert "4 of its 13 packets do not decode" in refused(path).what
    assert read_all(path, allow_truncated=True).reading.corrupt_packets == 4


def test_any_cut_ends_in_frames_or_one_error(tmp_path: Path) -> None:
    for suffix, film, options in PROMISING:
        whole = write_clip(tmp_path / f"whole.{suffix}", film, container_options=options).read_bytes()
        for share in (0.01, 0.1, 0.2, 0.9, 0.97):
            path = tmp_path / f"clip.{suffix}"
            path.write_bytes(whole)
            try:
                assert len(read_all(cut(path, share), allow_truncated=True).pixels) > 0
            except VaExportError as error:
                assert error.where and error.fix
