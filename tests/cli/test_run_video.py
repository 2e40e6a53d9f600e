"""What va-run and va-export say of the clip that they were given."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from command_line import TINY, va_export, va_run

from va_export.errors import VaExportError
from va_export.proof import sample

QUESTION = ("--prompt", "What moves?", "--max-new-tokens", 2)


@pytest.fixture
def cut_clip(tmp_path: Path) -> Path:
    """24 frames in the index, of which the last third is missing."""
    path = tmp_path / "cut.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mjpeg", rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for index in range(24):
            pixels = np.full((48, 64, 3), 10 * index, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: places[16]])
    return path


def test_run_takes_a_cut_clip_only_when_told_and_says_so(tiny_bundle: Path, cut_clip: Path) -> None:
    refused = va_run(tiny_bundle, "--video", cut_clip, *QUESTION)
    assert refused.code == 2 and refused.stdout == "" and "promises 24 frames" in refused.stderr
    taken = va_run(tiny_bundle, "--video", cut_clip, *QUESTION, "--allow-truncated", "--timings")
    assert taken.code == 0 and taken.stdout.strip(), taken.stderr
    *notes, timings = taken.stderr.splitlines()
    assert len(notes) == 1 and notes[0].startswith("note: ") and "taken for the whole" in notes[0]
    video = json.loads(timings)["video"]
    assert video["truncated"] and (video["promised"], video["decoded"]) == ("24 frames", 16)


def test_run_samples_as_asked(tiny_bundle: Path, clip: Path) -> None:
    answers = {}
    for sampling in ("segment-midpoint", "uniform-time", "fps=0.5"):
        outcome = va_run(tiny_bundle, "--video", clip, *QUESTION, "--sampling", sampling, "--timings")
        assert outcome.code == 0, outcome.stderr
        answers[sampling] = json.loads(outcome.stderr)["video"]["sampling"]
    assert list(answers) == list(answers.values())
    unknown = va_run(tiny_bundle, "--video", clip, *QUESTION, "--sampling", "middle")
    assert unknown.code == 2 and "--sampling" in unknown.stderr and "fps=2" in unknown.stderr


def test_export_hands_on_how_the_clip_is_to_be_read(
    cut_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []

    def read_frames(path: Path, n_frames: int, rule: str, *, allow_truncated: bool) -> None:
        asked.append((path, n_frames, rule, allow_truncated))
        raise VaExportError("read", where=path, fix="go on")

    arguments = (*TINY, "--onnx-only", "-o", tmp_path / "bundle", "--video", cut_clip)
    assert "--allow-truncated" in va_export(*arguments).stderr
    monkeypatch.setattr(sample, "read_frames", read_frames)
    va_export(*arguments, "--frames", 4, "--sampling", "uniform-time", "--allow-truncated")
    va_export(*arguments, "--max-frames", 9, "--sampling", "fps=2")
    assert asked == [(cut_clip, 4, "uniform-time", True), (cut_clip, 9, "fps=2", False)]


def test_a_manifest_records_how_the_clip_was_read(tiny_bundle: Path, clip: Path) -> None:
    video = json.loads((tiny_bundle / "manifest.json").read_text())["video"]
    assert (video["file"], video["codec"], video["size"]) == (clip.name, "h264", [640, 272])
    assert (video["sampling"], video["truncated"], video["corrupt_packets"]) == ("segment-midpoint", False, 0)
    assert len(video["timestamps"]) == len(video["indices"]) == video["frames"]
