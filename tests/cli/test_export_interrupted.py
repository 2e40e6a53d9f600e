"""An export that is stopped, killed or run twice: what was there before stays, and the same command continues."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from command_line import TINY, va_export
from killing import kill_and_repeat
from refusals import refused

from va_export.bundle.manifest import read_manifest
from va_export.graph import trace
from va_export.models.component import Component

REPOSITORY = Path(__file__).parents[2]
# A shell gives background jobs SIGINT ignored, and so would this test hand it on.
MAIN = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from va_export.cli.export import main; main()"
)
OPTIONS = ("--onnx-only", "--components", "embedding,decoder")


@contextmanager
def running(output: Path, temporary: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """va-export in a process of its own, its embedding written and its decoder being traced."""
    temporary.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(temporary)}
    command = [sys.executable, "-c", MAIN, *TINY, "-o", str(output), *OPTIONS, *more]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "export embedding" in line:
                break
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=60)


def earlier_bundle(directory: Path) -> dict[str, bytes]:
    """A bundle as an earlier run left it; returns its files."""
    directory.mkdir()
    (directory / "manifest.json").write_text(json.dumps({"manifest_version": 1}))
    (directory / "precious").write_bytes(b"weights")
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_control_c_keeps_the_work_and_what_was_there(tmp_path: Path) -> None:
    place, temporary = tmp_path / "place", tmp_path / "temporary"
    place.mkdir()
    before = earlier_bundle(place / "b")
    with running(place / "b", temporary, "--overwrite") as process:
        assert {path.name for path in place.iterdir()} == {"b", ".b.lock", "b.partial"}
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    assert f"interrupted\nWhat was written so far is kept in {place / 'b'}.partial: the same command" in errors
    assert {path.name for path in place.iterdir()} == {"b", "b.partial"}
    assert {path.name: path.read_bytes() for path in (place / "b").iterdir()} == before
    assert [path.name for path in temporary.iterdir() if not path.name.startswith("torchinductor_")] == []
    with refused(place / "b.partial", "manifest.json"):
        read_manifest(place / "b.partial")


def test_two_runs_at_once(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with running(place / "b", tmp_path / "temporary") as process:
        second = va_export(*TINY, "-o", place / "b", *OPTIONS)
        assert second.code == 2 and "another va-export is writing this bundle now" in second.message
        assert process.poll() is None and (place / "b.partial" / "journal.jsonl").is_file()
        process.kill()
        process.wait(timeout=60)
    assert {path.name for path in place.iterdir()} == {".b.lock", "b.partial"}
    again = va_export(*TINY, "-o", place / "b", "--onnx-only", "--components", "embedding")  # not what was begun
    assert again.code == 0 and "option components changed: starting anew" in flat(again.stderr), again.stderr
    assert [path.name for path in place.iterdir()] == ["b"]


def repeat_export(output: Path, kills: list[int | None]) -> list[int]:
    """With many marks in the tiny model's data, as a large one has."""
    arguments = [*TINY, "--fp16", "--onnx-only", "--no-parity", "-o", output]
    return kill_and_repeat(arguments, kills, mark_bytes=40_000, block_elements=4_000)


def hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of every file but the manifest, which holds the time, and that without it."""
    manifest = json.loads((directory / "manifest.json").read_text())
    del manifest["created"]
    files = {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }
    files["manifest.json"] = json.dumps(manifest).encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """One bundle in one run; another whose run is killed five times, each time somewhere else on its way. Ten times at
    a real model's width: tests/export/test_real_width.py."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    assert repeat_export(tmp_path / "whole" / "b", [None]) == [0]
    # Some 330 events lie between start and end, and a run that continues repeats few of them.
    moments = random.Random(2509).sample(range(10, 75), 5)
    codes = repeat_export(tmp_path / "killed" / "b", [*moments, None])
    assert codes == [-signal.SIGKILL] * 5 + [0]
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["b"]
    assert hashes(tmp_path / "killed" / "b") == hashes(tmp_path / "whole" / "b")


# Within one process, where a run can be stopped anywhere


def flat(text: str) -> str:
    """Without the console's line breaks."""
    return " ".join(text.split())


class Traces:
    """Counts which components are traced, and ends a run when it comes to `stop_at`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.stop_at: str | None = None
        original = trace.FakeModel.trace

        def counted(model: trace.FakeModel, component: Component) -> Any:
            if component.name == self.stop_at:
                raise KeyboardInterrupt
            self.names.append(component.name)
            return original(model, component)

        monkeypatch.setattr(trace.FakeModel, "trace", counted)


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Traces:
    return Traces(monkeypatch)


def stopped(traces: Traces, output: Path, *arguments: object) -> None:
    """A run that ends before its decoder."""
    traces.stop_at = "decoder"
    outcome = va_export("-o", output, *OPTIONS, *arguments)
    assert outcome.code == 130 and traces.names == ["embedding"]
    traces.stop_at = None
    traces.names.clear()


def test_what_is_finished_is_not_traced_again(tmp_path: Path, traces: Traces) -> None:
    stopped(traces, tmp_path / "b", *TINY)
    outcome = va_export(*TINY, "-o", tmp_path / "b", *OPTIONS)
    assert outcome.code == 0 and traces.names == ["decoder"]
    assert "Continuing an earlier run's unfinished work" in outcome.stderr


def test_no_resume_starts_anew(tmp_path: Path, traces: Traces) -> None:
    stopped(traces, tmp_path / "b", *TINY)
    outcome = va_export(*TINY, "-o", tmp_path / "b", "--onnx-only", "--components", "embedding", "--no-resume")
    assert outcome.code == 0 and traces.names == ["embedding"] and "earlier run" not in outcome.stderr


def test_a_checkpoint_that_was_edited_since_is_named(checkpoint_copy: Path, tmp_path: Path, traces: Traces) -> None:
    """Even if it looks the same: one bit of one weight, and the file's time set back."""
    stopped(traces, tmp_path / "b", "--model", checkpoint_copy)
    weights = checkpoint_copy / "model.safetensors"
    content, stat = bytearray(weights.read_bytes()), weights.stat()
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    outcome = va_export("--model", checkpoint_copy, "-o", tmp_path / "b", *OPTIONS)
    assert outcome.code == 0 and traces.names == ["embedding", "decoder"]
    assert "since then checkpoint file model.safetensors changed: starting anew" in flat(outcome.stderr)
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["model"]["checkpoint_files"] == {
        "model.safetensors": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    }


def test_a_checkpoint_that_is_edited_meanwhile_is_found(
    checkpoint_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = trace.FakeModel.trace

    def edit_then_trace(*arguments: Any) -> Any:
        weights = checkpoint_copy / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
        return original(*arguments)

    monkeypatch.setattr(trace.FakeModel, "trace", edit_then_trace)
    outcome = va_export("--model", checkpoint_copy, "-o", tmp_path / "b", "--onnx-only", "--components", "embedding")
    outcome.refuses(checkpoint_copy / "model.safetensors")
    assert not (tmp_path / "b").exists()


def test_a_disk_that_fills_up_keeps_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data file's blocks are reserved, but not every file system can, and quotas may still end a write."""
    pwrite, written = os.pwrite, 0

    def full(descriptor: int, content: Any, offset: int) -> int:
        nonlocal written
        written += len(content)
        if written > 300_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, content, offset)

    monkeypatch.setattr(os, "pwrite", full)
    outcome = va_export(*TINY, "-o", tmp_path / "b", *OPTIONS)
    outcome.refuses(Path("onnx/decoder.onnx.data"), os.strerror(errno.ENOSPC))
    assert [path.name for path in tmp_path.iterdir()] == ["b.partial"]
    monkeypatch.undo()
    assert va_export(*TINY, "-o", tmp_path / "b", *OPTIONS).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_limit_on_the_size_of_files_shows_before_the_weights_are_written(
    golden_checkpoint: Path, tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # less than the embedding takes
    try:
        options = ("--onnx-only", "--components", "embedding")
        outcome = va_export("--model", golden_checkpoint, "-o", tmp_path / "b", *options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    outcome.refuses(Path("onnx/embedding.onnx.data"), os.strerror(errno.EFBIG))
    assert not list(tmp_path.iterdir())
