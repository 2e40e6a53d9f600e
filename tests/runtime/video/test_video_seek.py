"""Reading from key frame to key frame gives what decoding the whole clip gives, or is not done."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clip_maker import RATE, Film, packets_of, spoil, with_matrix, write_clip
from refusals import refused

import va_export.runtime.video.read as read_module
from va_export.errors import VaExportError
from va_export.runtime.video import Frames, read_frames
from va_export.runtime.video.heads import head_reader
from va_export.runtime.video.seek import seek_video
from va_export.runtime.video.survey import survey_video

COUNT, GROUP = 160, 8
FAST = {"preset": "veryfast", "g": str(GROUP)}


@functools.cache
def texture() -> np.ndarray:
    """[64, 96, 3] of noise over blocks of 4 x 4."""
    noise = np.random.default_rng(5).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    return noise.repeat(4, 0).repeat(4, 1)


@dataclass
class Moving(Film):
    """Noise that moves by an odd step a frame, with new noise in one corner: every frame differs from all others, and
    each that is predicted is wrong if what it builds on is."""

    count: int = COUNT
    options: dict[str, str] = field(default_factory=lambda: dict(FAST))

    def frames(self) -> Iterable[av.VideoFrame]:
        new = np.random.default_rng(6)
        for index in range(self.count):
            image = np.roll(texture(), (index, 3 * index), (0, 1))
            image[:16, :16] = new.integers(0, 256, 3)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=self.pix_fmt)
            frame.pts, frame.time_base = index if self.ticks is None else self.ticks[index], Fraction(1, RATE)
            yield frame


def all_frames(path: Path) -> list[np.ndarray]:
    """What FFmpeg decodes of the first film from its start, by one thread."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]


UNEVEN = tuple(int(tick) for tick in np.cumsum(np.random.default_rng(7).integers(1, 9, COUNT)))
X265 = "log-level=none:keyint=8:min-keyint=8:scenecut=0:bframes=3"
X264_OPEN = "open-gop=1:keyint=8:min-keyint=8:scenecut=0:bframes=3:b-pyramid=normal:ref=4"
SOUGHT = [
    ("mp4", Moving(), {}),
    ("mp4", Moving(options={"x264-params": X264_OPEN}), {}),
    ("mp4", Moving(options=FAST | {"g": "3", "bf": "2"}), {}),
    ("mp4", Moving(ticks=UNEVEN), {}),
    ("mp4", Moving(), {"movflags": "frag_keyframe+empty_moov"}),
    ("mov", Moving(pix_fmt="yuv444p10le"), {"use_editlist": "0"}),
    ("mkv", Moving(ticks=UNEVEN), {}),
    ("mkv", Moving(), {"live": "1"}),
    ("ts", Moving(options={"x264-params": X264_OPEN}), {}),
    ("avi", Moving(options=FAST | {"bf": "0"}), {}),
    ("mp4", Moving("libx265", options={"preset": "ultrafast", "x265-params": f"{X265}:open-gop=1"}), {}),
    ("mkv", Moving("libx265", options={"preset": "ultrafast", "x265-params": f"{X265}:open-gop=0:radl=2"}), {}),
    ("ts", Moving("libx265", options={"preset": "ultrafast", "x265-params": f"{X265}:open-gop=1"}), {}),
    ("webm", Moving("libvpx", options={"g": "8", "deadline": "realtime", "cpu-used": "8"}), {}),
    ("webm", Moving("libvpx-vp9", options={"g": "8", "deadline": "realtime", "cpu-used": "8"}), {}),
    ("mp4", Moving("libvpx-vp9", options={"g": "8", "cpu-used": "5", "lag-in-frames": "6", "auto-alt-ref": "1"}), {}),
    ("mp4", Moving("libsvtav1", options={"preset": "12", "g": "8"}), {}),
    ("mkv", Moving("libsvtav1", options={"preset": "10", "g": "8", "svtav1-params": "film-grain=20"}), {}),
    ("avi", Moving("mjpeg", "yuvj420p", options={}), {}),
    ("mov", Moving("prores_ks", "yuv422p10le", options={}), {}),
]


@pytest.mark.parametrize(("suffix", "film", "options"), SOUGHT)
def test_sought_frames_are_those_of_a_full_decode(
    suffix: str, film: Film, options: dict[str, str], tmp_path: Path
) -> None:
    path = write_clip(tmp_path / f"clip.{suffix}", film, container_options=options)
    truth = all_frames(path)
    assert len(truth) == COUNT
    index = survey_video(path).index
    assert index is not None
    for frame in (1, 77, 78, 79, 80, 81, COUNT - 2):  # about the key frame 80, which three frames may lead
        sought = seek_video(path, index, {frame})
        assert sought is not None and sought.passed_over >= COUNT // 2 and len(sought.spans) == COUNT
        np.testing.assert_array_equal(sought.kept[frame], truth[frame])


def read_both(path: Path, n_frames: int, monkeypatch: pytest.MonkeyPatch, **options: bool) -> tuple[Frames, Frames]:
    """By seeking, if that is done, and by decoding all of it."""
    sought = read_frames(path, n_frames, **options)
    with monkeypatch.context() as patched:
        patched.setattr(read_module, "seek_video", lambda *_: None)
        return sought, read_frames(path, n_frames, **options)


def with_sound(path: Path) -> Path:
    film = Moving()
    with av.open(str(path), "w") as container:
        picture = container.add_stream(film.codec, rate=RATE, options=film.options)
        picture.width, picture.height, picture.pix_fmt = *film.size, film.pix_fmt
        sound = container.add_stream("mp2", rate=16_000, layout="mono")
        for frame in film.frames():
            container.mux(picture.encode(frame))
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), format="s16", layout="mono")
            samples.sample_rate = 16_000
            container.mux(sound.encode(samples))
        container.mux(picture.encode())
        container.mux(sound.encode())
    return path


def seen_from(path: Path, frames: int) -> Path:
    """Let an MP4's edit list hide its first frames."""
    content = bytearray(path.read_bytes())
    place = content.index(b"elst") + 16  # after the box's name: version and flags, number of entries, length
    with av.open(str(path)) as container:
        ticks = int(frames / (RATE * container.streams.video[0].time_base))
    start = int.from_bytes(content[place : place + 4], "big") + ticks
    content[place : place + 4] = start.to_bytes(4, "big")
    path.write_bytes(content)
    return path


TURNED = (0, 1 << 16, -1 << 16, 0)


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: write_clip(folder / "clip.mp4", Moving()),
        lambda folder: write_clip(folder / "clip.ts", Moving(ticks=UNEVEN)),
        lambda folder: with_matrix(write_clip(folder / "clip.mp4", Moving()), TURNED),
        lambda folder: seen_from(write_clip(folder / "clip.mp4", Moving()), 12),
        lambda folder: with_sound(folder / "clip.mp4"),
        lambda folder: with_sound(folder / "clip.mkv"),
        lambda folder: write_clip(folder / "clip.mp4", Moving(size=(64, 48)), Moving()),
    ],
)
def test_a_sought_clip_reads_as_a_decoded_one(
    write: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sought, decoded = read_both(write(tmp_path), 1, monkeypatch)
    np.testing.assert_array_equal(sought.pixels, decoded.pixels)
    assert (sought.indices, sought.timestamps) == (decoded.indices, decoded.timestamps)
    told, all_of_it = sought.reading, decoded.reading
    assert told.passed_over > 0 and told.decoded + told.passed_over == all_of_it.decoded == all_of_it.packets
    assert replace(told, decoded=all_of_it.decoded, passed_over=0) == all_of_it


LIKE_RAIN = {"x264-params": "intra-refresh=1:keyint=8:scenecut=0:bframes=0"}


@pytest.mark.parametrize(
    ("suffix", "film", "options"),
    [
        ("h264", Moving(), {}),  # no times
        ("mp4", Moving("mpeg4", options={"g": "8"}), {}),  # no reader for its packets
        ("mp4", Moving(options={"preset": "veryfast", "g": "1000"}), {}),  # one key frame
        ("ts", Moving(options=LIKE_RAIN), {}),  # recovery points that take a while
        ("mp4", Moving(options=FAST | {"x264-params": "tff=1"}), {}),  # interlaced
        ("avi", Moving(), {}),  # B-frames without times
        ("mp4", Moving(count=40), {}),  # too short
    ],
)
def test_what_is_not_certain_or_not_faster_is_decoded_whole(
    suffix: str, film: Film, options: dict[str, str], tmp_path: Path
) -> None:
    path = write_clip(tmp_path / f"clip.{suffix}", film, container_options=options)
    reading = read_frames(path, 1).reading
    assert (reading.decoded, reading.passed_over) == (film.count, 0)


def test_parameter_sets_that_change_are_not_passed_over(tmp_path: Path) -> None:
    parts = [write_clip(tmp_path / f"{qp}.ts", Moving(options=FAST | {"qp": qp})) for qp in ("20", "40")]
    path, shift = tmp_path / "clip.ts", 0
    with av.open(str(path), "w") as joined:
        for part in parts:
            with av.open(str(part)) as container:
                stream = container.streams.video[0]
                target = joined.streams.video[0] if shift else joined.add_stream_from_template(stream)
                for packet in container.demux(stream):
                    if packet.size:
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, target
                        joined.mux(packet)
                shift = int(COUNT / RATE / stream.time_base)
    assert survey_video(path).index is None
    assert read_frames(path, 1).reading.passed_over == 0


def garble(path: Path, packets: Iterable[int]) -> Path:
    """Overwrite packets but for their first bytes, so that only decoding shows it."""
    places, content = packets_of(path), bytearray(path.read_bytes())
    for number in packets:
        start, length = places[number]
        content[start + 12 : start + length] = b"\x55" * (length - 12)
    path.write_bytes(content)
    return path


PLAIN = Moving(options=FAST | {"bf": "0"})


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """160 frames in groups of 8 and in the order of packets; one frame of them is number 79."""
    return write_clip(
        tmp_path / "clip.mp4", Moving(options=FAST | {"bf": "0"}), container_options={"movflags": "faststart"}
    )


def test_damage_that_is_passed_over_does_no_harm(clip: Path) -> None:
    whole = read_frames(clip, 1)
    damaged = read_frames(garble(clip, [50]), 1)
    assert whole.indices == damaged.indices == (79,)
    np.testing.assert_array_equal(damaged.pixels, whole.pixels)
    assert damaged.reading.passed_over > 0 == damaged.reading.patched_frames


@pytest.mark.parametrize("number", [0, 79, COUNT - 3])
def test_damage_on_the_way_is_told_as_of_a_decoded_clip(
    number: int, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first frame, in the wanted one, or in the end, which is decoded for this alone."""
    sought, decoded = read_both(garble(clip, [number]), 1, monkeypatch)
    assert sought.reading == decoded.reading and sought.reading.notes
    np.testing.assert_array_equal(sought.pixels, decoded.pixels)


def test_a_packet_of_zeros_is_found_wherever_it_is(clip: Path) -> None:
    reading = read_frames(spoil(clip, [50]), 1).reading
    assert reading.passed_over == 0 and (reading.packets, reading.decoded) == (COUNT, COUNT - 1) and reading.notes


def test_a_damaged_end_is_cut_short(clip: Path) -> None:
    with pytest.raises(VaExportError) as caught:
        read_frames(spoil(clip, range(120, COUNT)), 1)  # far behind the only frame that is asked for
    assert "--allow-truncated" in str(caught.value.fix)


def test_a_cut_clip_is_not_sought(clip: Path) -> None:
    start, length = packets_of(clip)[120]
    clip.write_bytes(clip.read_bytes()[: start + length])
    with refused(clip, "160 frames"):
        read_frames(clip, 1)
    reading = read_frames(clip, 1, allow_truncated=True).reading
    assert reading.truncated and (reading.decoded, reading.passed_over) == (121, 0)


def test_another_file_than_the_surveyed_one_is_not_sought(clip: Path) -> None:
    index = survey_video(clip).index
    write_clip(clip, Moving(options=PLAIN.options | {"crf": "35"}), container_options={"movflags": "faststart"})
    assert index is not None and seek_video(clip, index, {80}) is None


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp8", "vp9", "av1", "mjpeg", "prores"])
@pytest.mark.parametrize("extradata", [b"", b"\1" + b"\xff" * 40])
def test_any_bytes_are_a_packet_or_none(codec: str, extradata: bytes) -> None:
    noise, read_head = np.random.default_rng(8), head_reader(codec, extradata)
    assert read_head is not None and read_head(b"") is None and read_head(bytes(400)) is None
    for length in (*range(1, 12), *range(20, 400, 20)):
        assert read_head(memoryview(noise.bytes(length))) in (True, False, None)


def superframe(*frames: bytes) -> bytes:
    """VP9 specification, annex B.2: sizes of two bytes between two markers, at the end."""
    marker = bytes([0xC0 | 1 << 3 | len(frames) - 1])
    return b"".join(frames) + marker + b"".join(len(frame).to_bytes(2, "little") for frame in frames) + marker


def test_packets_that_show_no_frame_or_two_are_not_counted_on() -> None:
    """First bytes by hand: frame_marker 2, profile 0, show_existing_frame, frame_type (0: key), show_frame."""
    key, hidden_key, inter, hidden, again = (bytes([first]) + bytes(30) for first in (0x82, 0x80, 0x86, 0x84, 0x88))
    packets = {
        (key,): True, (inter,): False, (again,): False, (hidden_key,): None, (hidden,): None,
        (hidden, inter): False, (hidden_key, inter): False, (key, inter): None, (hidden, hidden): None,
    }  # fmt: skip
    vp9, vp8 = head_reader("vp9", b""), head_reader("vp8", b"")
    assert vp9 is not None and vp8 is not None
    for frames, expected in packets.items():
        assert vp9(superframe(*frames)) is expected
        assert len(frames) > 1 or vp9(frames[0]) is expected
    # RFC 6386, 9.1: not a key frame, version 3, show_frame, size of the first partition; then the start code.
    for first, expected in ((0x10, True), (0x11, False), (0x00, None), (0x01, None)):
        assert vp8(bytes([first, 0, 0]) + b"\x9d\1\x2a" + bytes(20)) is expected


def test_h264_heads_by_hand() -> None:
    annex_b, cut = head_reader("h264", b""), head_reader("h264", b"\1\x64\0\x0a\xff")
    assert annex_b is not None and cut is not None
    inter, idr = b"\0\0\1\x41\x9a\x01", b"\0\0\1\x65\x88\x01"
    assert (annex_b(inter), annex_b(idr), annex_b(b"\0\0\1\x09\x10")) == (False, True, None)
    # D.2.8: recovery_frame_cnt (0: 1, 1: 010), exact_match_flag, broken_link_flag, changing_slice_group_idc, stop bit.
    for bits, expected in (("11000100", True), ("10000100", False), ("01010001", False)):
        message = bytes([6, 1, int(bits, 2)])
        for before in (b"", b"\5\2ab"):
            assert annex_b(b"\0\0\1\6" + before + message + b"\x80" + inter) is expected
    whole = (3).to_bytes(4, "big") + idr[3:]
    assert cut(whole) is True and cut(whole[:-1]) is None and cut(whole + bytes(4)) is None
