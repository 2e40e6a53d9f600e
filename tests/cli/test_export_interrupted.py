"""An export that is stopped, killed or run twice: what was there before stays, and the next run cleans up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from command_line import TINY, va_export

REPOSITORY = Path(__file__).parents[2]
MAIN = "from va_export.cli.export import main; main()"
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


def test_control_c_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    place, temporary = tmp_path / "place", tmp_path / "temporary"
    place.mkdir()
    before = earlier_bundle(place / "b")
    with running(place / "b", temporary, "--overwrite") as process:
        assert {path.name for path in place.iterdir()} == {"b", ".b.lock", f"b.tmp-{process.pid}"}
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted: nothing was left behind" in errors and "Traceback" not in errors
    assert [path.name for path in place.iterdir()] == ["b"]
    assert {path.name: path.read_bytes() for path in (place / "b").iterdir()} == before
    assert [path.name for path in temporary.iterdir() if not path.name.startswith("torchinductor_")] == []


def test_killed_and_run_again(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    before = earlier_bundle(place / "b")
    with running(place / "b", tmp_path / "temporary", "--overwrite") as process:
        # While it runs, a second run of the same output is refused and disturbs nothing.
        second = va_export(*TINY, "-o", place / "b", *OPTIONS, "--overwrite")
        assert second.code == 2 and "another va-export is writing this bundle now" in second.message
        assert process.poll() is None
        process.kill()
        process.wait(timeout=60)
    assert f"b.tmp-{process.pid}" in {path.name for path in place.iterdir()}
    assert {path.name: path.read_bytes() for path in (place / "b").iterdir()} == before
    again = va_export(*TINY, "-o", place / "b", "--onnx-only", "--components", "embedding", "--overwrite")
    assert again.code == 0, again.stderr
    assert [path.name for path in place.iterdir()] == ["b"]
    assert (place / "b" / "onnx" / "embedding.onnx").is_file() and not (place / "b" / "precious").exists()
