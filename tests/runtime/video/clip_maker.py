"""Small clips whose pictures tell which frame they are and which way up they stand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

RATE = 12
# Upper left, upper right, lower left, lower right.
CORNERS = ((210, 40, 40), (50, 190, 60), (50, 60, 210), (215, 205, 60))
DARKEST, STEP = 20, 18  # grey level of the middle of frame 0, and from one frame to the next


def picture(index: int, size: tuple[int, int] = (96, 64)) -> np.ndarray:
    """[H, W, 3] uint8: four corners of different colours, and a middle whose grey level is the frame's number."""
    width, height = size
    image = np.empty((height, width, 3), dtype=np.uint8)
    half_h, half_w = height // 2, width // 2
    image[:half_h, :half_w], image[:half_h, half_w:] = CORNERS[0], CORNERS[1]
    image[half_h:, :half_w], image[half_h:, half_w:] = CORNERS[2], CORNERS[3]
    image[height // 4 : -(height // 4), width // 4 : -(width // 4)] = DARKEST + STEP * index
    return image


def number_of(pixels: np.ndarray) -> int:
    """Which frame a picture is, by its middle."""
    height, width = pixels.shape[:2]
    middle = pixels[height // 2 - 4 : height // 2 + 4, width // 2 - 4 : width // 2 + 4].mean()
    return round((float(middle) - DARKEST) / STEP)


def corners_of(pixels: np.ndarray) -> np.ndarray:
    """[4, 3]: colours in the corners, in the order of CORNERS."""
    rows, columns = (6, pixels.shape[0] - 7), (6, pixels.shape[1] - 7)
    return np.array(
        [pixels[row - 2 : row + 3, column - 2 : column + 3].mean((0, 1)) for row in rows for column in columns]
    )


@dataclass
class Film:
    """A video stream to write.

    Attributes:
        ticks: when each frame begins, in 1/RATE s; None: one after the other.
        disposition: of `av.stream.Disposition`; None: the container's default.
    """

    codec: str = "libx264"
    pix_fmt: str = "yuv420p"
    count: int = 12
    size: tuple[int, int] = (96, 64)
    options: dict[str, str] = field(default_factory=dict)
    ticks: Sequence[int] | None = None
    disposition: int | None = None

    def frames(self) -> Iterable[av.VideoFrame]:
        for index in range(self.count):
            frame = av.VideoFrame.from_ndarray(picture(index, self.size), format="rgb24").reformat(format=self.pix_fmt)
            frame.pts = index if self.ticks is None else self.ticks[index]
            frame.time_base = Fraction(1, RATE)
            yield frame


def write_clip(path: Path, *films: Film, container_options: dict[str, str] | None = None, cover: bytes = b"") -> Path:
    """Write a file with these streams, in this order, and a JPEG as Matroska attaches covers.

    Skips the test where this PyAV has no such encoder.
    """
    films = films or (Film(),)
    for film in films:
        if film.codec not in av.codec.codecs_available:
            pytest.skip(f"this build of PyAV has no encoder {film.codec}")
    with av.open(str(path), "w", options=container_options or {}) as container:
        streams = []
        if cover:
            container.add_attachment("cover.jpg", "image/jpeg", cover)
        for film in films:
            stream = container.add_stream(film.codec, rate=RATE, options=film.options)
            stream.width, stream.height, stream.pix_fmt = *film.size, film.pix_fmt
            stream.time_base = stream.codec_context.time_base = Fraction(1, RATE)
            if film.disposition is not None:
                stream.disposition = film.disposition
            streams.append(stream)
        for stream, film in zip(streams, films, strict=True):
            for frame in film.frames():
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


def with_matrix(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Write a display matrix (a, b, c, d; 65536 is one) into an MP4's track header."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44  # version 0: 40 bytes between the box's name and its matrix
    a, b, c, d = matrix
    for offset, value in zip(range(0, 36, 4), (a, b, 0, c, d, 0, 0, 0, 1 << 30), strict=True):
        content[place + offset : place + offset + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(content)
    return path


def packets_of(path: Path) -> list[tuple[int, int]]:
    """Place and length in bytes of each packet of the first video stream."""
    with av.open(str(path)) as container:
        return [(packet.pos or 0, packet.size) for packet in container.demux(video=0) if packet.size]


def spoil(path: Path, packets: Iterable[int]) -> Path:
    """Overwrite packets with zeros."""
    places, content = packets_of(path), bytearray(path.read_bytes())
    for index in packets:
        start, length = places[index]
        content[start : start + length] = bytes(length)
    path.write_bytes(content)
    return path


def cut(path: Path, share: float) -> Path:
    """Keep the first part of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path
