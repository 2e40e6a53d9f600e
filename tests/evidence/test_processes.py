"""Memory, disk and exit codes of commands whose needs are known."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from va_export.evidence import processes
from va_export.evidence.processes import _without_folders, disk_usage, watch

MIB = 1 << 20
# Holds 64 MiB itself, and 192 MiB in a child until it was looked at; writes 8 MiB and takes half of it away again.
PROGRAM = '''
import os, pathlib, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
(folder / "a").write_bytes(os.urandom(4 << 20)); (folder / "b").write_bytes(os.urandom(4 << 20))
held = bytearray(64 << 20)
held[::4096] = b"x" * len(held[::4096])
child = """
import pathlib, sys, time
held = bytearray(192 << 20)
held[::4096] = b"x" * len(held[::4096])
looks = lambda: int(pathlib.Path(sys.argv[1]).read_text() or 0)
enough = looks() + 3
while looks() < enough:
    time.sleep(0.05)
"""
subprocess.run([sys.executable, "-c", child, sys.argv[2]])
(folder / "b").unlink()
raise SystemExit(7)
'''


def test_a_command_and_its_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, folder, original = tmp_path / "looks", tmp_path / "folder", processes._Sampler.look
    looks.write_text("0")
    folder.mkdir()

    def look(self: processes._Sampler) -> None:
        original(self)
        looks.write_text(str(int(looks.read_text()) + 1))

    monkeypatch.setattr(processes._Sampler, "look", look)
    result = watch([sys.executable, "-c", PROGRAM, str(folder), str(looks)], folder=folder)
    assert result.code == 7 and result.seconds > 0
    assert 192 * MIB < result.peak_rss < 300 * MIB  # Python itself takes some tens of MiB
    peaks = sorted(process["peak_rss"] for process in result.processes)
    assert len(peaks) == 2 and 64 * MIB < peaks[0] < 170 * MIB and 192 * MIB < peaks[1] < 300 * MIB
    assert 8 * MIB <= result.peak_disk < 9 * MIB and disk_usage(folder) < 5 * MIB
    assert all(Path(process["command"].split()[0]).parent == Path() for process in result.processes)  # no folders
    assert set(result.to_json()) == {"code", "seconds", "peak_rss_bytes", "peak_disk_bytes", "processes"}


def test_output_and_signals(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        result = watch(
            [sys.executable, "-c", "import os; print('hello', flush=True); os.kill(os.getpid(), 15)"],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    assert result.code == -15 and (tmp_path / "log").read_text() == "hello\n"


def test_no_folder_of_the_machine_is_told() -> None:
    words = [
        "/usr/bin/python",
        "-c",
        'main() ["", "/root/lib/python3.11", "/home/a b"]',
        "--work=/data/x",
        "a/b",
    ]
    assert _without_folders(words) == 'python -c main() ["", "python3.11", "a b"] --work=x a/b'
