"""What a command takes: its time, the peak memory of each of its processes, and the disk below a folder."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

_INTERVAL = 0.25

# All of an absolute path but its last name.
_FOLDERS = re.compile(r"""(?<![\w.\-/])/(?:[^/\s"',]+/)*(?=[^/\s"',])""")


@dataclass(frozen=True)
class Watched:
    """One command that has ended.

    Attributes:
        code: exit code, negative for a signal.
        seconds: wall time.
        peak_rss: bytes, of its largest process, as the kernel counted them (`getrusage`); where this process itself has
            held more, which that count cannot tell apart, the largest of `processes`.
        processes: every process: `pid`, `command` (absolute paths by their names alone) and `peak_rss` in bytes (the
            kernel's high-water mark, last read at most a quarter of a second before the process ended).
        peak_disk: bytes that the folder's files took at most.
    """

    code: int
    seconds: float
    peak_rss: int
    processes: tuple[dict[str, Any], ...] = ()
    peak_disk: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "code": self.code,
            "seconds": round(self.seconds, 2),
            "peak_rss_bytes": self.peak_rss,
            "peak_disk_bytes": self.peak_disk,
            "processes": list(self.processes),
        }


@dataclass
class _Sampler:
    """Looks at a process and its descendants now and then."""

    pid: int
    folder: Path | None
    peaks: dict[tuple[int, float], dict[str, Any]] = field(default_factory=dict)
    peak_disk: int = 0

    def run(self, ended: threading.Event) -> None:
        while not ended.wait(_INTERVAL):
            self.look()

    def look(self) -> None:
        try:
            root = psutil.Process(self.pid)
            processes = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            processes = []
        for process in processes:
            try:
                peak = high_water_mark(process.pid)
                entry = {"pid": process.pid, "command": _without_folders(process.cmdline())[:200], "peak_rss": peak}
                self.peaks[process.pid, process.create_time()] = entry
            except (psutil.Error, OSError, ValueError):
                continue  # it ended between two looks
        if self.folder is not None:
            self.peak_disk = max(self.peak_disk, disk_usage(self.folder))


def watch(command: Sequence[str], *, folder: Path | None = None, **options: Any) -> Watched:
    """Run a command to its end.

    Args:
        folder: whose disk usage is recorded meanwhile.
        options: for `subprocess.Popen`.
    """
    start, ours = time.perf_counter(), high_water_mark(os.getpid())
    process = subprocess.Popen(command, **options)
    sampler, ended = _Sampler(process.pid, folder), threading.Event()
    thread = threading.Thread(target=sampler.run, args=(ended,), daemon=True)
    thread.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        ended.set()
        thread.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if folder is not None:
        sampler.peak_disk = max(sampler.peak_disk, disk_usage(folder))
    peak = usage.ru_maxrss * 1024
    if peak <= ours:  # what the kernel counts begins with this process's own memory, which the fork shares until exec
        peak = max((entry["peak_rss"] for entry in sampler.peaks.values()), default=peak)
    return Watched(process.returncode, seconds, peak, tuple(sampler.peaks.values()), sampler.peak_disk)


def _without_folders(words: Sequence[str]) -> str:
    """A command line without the places where this machine keeps things, also in lists and settings."""
    return _FOLDERS.sub("", " ".join(words))


def high_water_mark(pid: int) -> int:
    """Bytes of memory that a process has held at most so far (`VmHWM`).

    Raises:
        OSError: there is no such process. ValueError: it has no memory any more.
    """
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} has ended")


def disk_usage(folder: Path) -> int:
    """Bytes of the blocks that the files below a folder take."""
    total = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(directory, name)).st_blocks * 512  # noqa: PTH118  a path of any bytes
            except FileNotFoundError:
                continue
    return total
