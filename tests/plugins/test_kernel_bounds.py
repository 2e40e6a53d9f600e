"""No read or write outside a buffer: the kernels on the CPU under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SIMT = Path(__file__).parent / "simt"
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O0", "-DVA_EXPORT_FEWER_HEAD_DIMS"]


def compile_program(source: Path, path: Path, cxx: str, host_flags: list[str]) -> Path:
    build = [cxx, *host_flags, *SANITIZE, str(source), "-o", str(path)]
    built = subprocess.run(build, capture_output=True, text=True)
    if built.returncode and "san" in built.stderr and "cannot find" in built.stderr:
        pytest.skip(f"{cxx} has no sanitizer libraries")
    assert built.returncode == 0, built.stderr
    return path


@pytest.fixture(scope="module")
def program(cxx: str, host_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_program(SIMT / "bounds.cpp", tmp_path_factory.mktemp("bounds") / "bounds", cxx, host_flags)


@pytest.fixture(scope="module")
def score_program(cxx: str, host_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_program(SIMT / "score_bounds.cpp", tmp_path_factory.mktemp("bounds") / "score", cxx, host_flags)


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


@pytest.mark.parametrize("products", ["simple", "tensor_core"])
def test_score_kernels_stay_in_bounds(score_program: Path, monkeypatch: pytest.MonkeyPatch, products: str) -> None:
    monkeypatch.setenv("VA_EXPORT_SCORE_PRODUCTS", products)
    done = run(score_program)
    assert (done.returncode, done.stdout) == (0, "7 launches\n"), done.stderr


def test_sanitizer_sees_a_short_workspace(score_program: Path) -> None:
    done = run(score_program, "with a workspace that lacks its end")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
