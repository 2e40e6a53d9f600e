"""No read or write outside a buffer: the kernel on the CPU under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "simt" / "bounds.cpp"
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O0", "-DVA_EXPORT_FEWER_HEAD_DIMS"]


@pytest.fixture(scope="module")
def program(cxx: str, host_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bounds") / "bounds"
    build = [cxx, *host_flags, *SANITIZE, str(SOURCE), "-o", str(path)]
    built = subprocess.run(build, capture_output=True, text=True)
    if built.returncode and "san" in built.stderr and "cannot find" in built.stderr:
        pytest.skip(f"{cxx} has no sanitizer libraries")
    assert built.returncode == 0, built.stderr
    return path


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0"}
    return subprocess.run([program, *arguments], capture_output=True, text=True, env=environment)


@pytest.mark.usefixtures("kernel")
def test_kernel_stays_in_bounds(program: Path) -> None:
    done = run(program)
    assert (done.returncode, done.stdout) == (0, "48 launches\n"), done.stderr


def test_hopper_kernel_stays_in_bounds(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the emulated copy engine reads follows from the tensor maps, which the launcher makes."""
    monkeypatch.setenv("VA_EXPORT_ATTENTION_KERNEL", "tensor_core")
    done = run(program, "hopper")
    assert (done.returncode, done.stdout) == (0, "3 launches\n"), done.stderr
    done = run(program, "hopper", "with a key buffer that is one element short")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


def test_sanitizer_sees_a_short_buffer(program: Path) -> None:
    done = run(program, "with a key buffer that is one element short")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
