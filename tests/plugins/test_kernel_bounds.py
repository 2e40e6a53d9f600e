"""No read or write outside a buffer: the kernel on the CPU under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "simt" / "bounds.cpp"
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1"]


def build_and_run(cxx: str, flags: list[str], directory: Path, *defines: str) -> subprocess.CompletedProcess[str]:
    program = directory / "bounds"
    build = [cxx, *flags, *SANITIZE, *defines, str(SOURCE), "-o", str(program)]
    built = subprocess.run(build, capture_output=True, text=True)
    if built.returncode and "san" in built.stderr and "cannot find" in built.stderr:
        pytest.skip(f"{cxx} has no sanitizer libraries")
    assert built.returncode == 0, built.stderr
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0"}
    return subprocess.run([program], capture_output=True, text=True, env=environment)


def test_kernel_stays_in_bounds(cxx: str, host_flags: list[str], tmp_path: Path) -> None:
    done = build_and_run(cxx, host_flags, tmp_path)
    assert (done.returncode, done.stdout) == (0, "48 launches\n"), done.stderr


def test_sanitizer_sees_a_short_buffer(cxx: str, host_flags: list[str], tmp_path: Path) -> None:
    done = build_and_run(cxx, host_flags, tmp_path, "-DVA_MISSING_KEY_ELEMENTS=1")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
