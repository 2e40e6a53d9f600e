"""The CPU emulation that the kernel tests stand on: it runs right kernels and notices wrong ones."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

GOOD, NO_BARRIER, ONE_WARP, HALF_A_WARP, SHUFFLES, OVERFLOW = range(6)
SUCCESS, INVALID_VALUE, LAUNCH_FAILURE = 0, 1, 719
Run = Callable[..., tuple[int, list[int]]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cxx: str, host_flags: list[str]) -> Run:
    path = tmp_path_factory.mktemp("selftest") / "selftest.so"
    source = Path(__file__).parent / "simt" / "selftest.cpp"
    subprocess.run([cxx, *host_flags, "-O1", "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
    library = ctypes.CDLL(str(path))

    def call(kernel: int, schedule: int = 0, shared_bytes: int = 256) -> tuple[int, list[int]]:
        out = np.zeros(64, np.int32)
        status = library.run_selftest(
            kernel, schedule, ctypes.c_size_t(shared_bytes), out.ctypes.data_as(ctypes.c_void_p)
        )
        return status, out.tolist()

    return call


@pytest.mark.parametrize("schedule", [0, 1, 2, 3])
def test_right_kernel_gives_one_result(run: Run, schedule: int) -> None:
    assert run(GOOD, schedule) == (SUCCESS, [*range(1, 64), 0])


def test_a_race_shows_between_schedules(run: Run) -> None:
    assert len({tuple(run(NO_BARRIER, schedule)[1]) for schedule in range(4)}) > 1


@pytest.mark.parametrize("kernel", [ONE_WARP, HALF_A_WARP, SHUFFLES, OVERFLOW])
def test_wrong_kernel_is_an_error(run: Run, kernel: int) -> None:
    assert run(kernel)[0] == LAUNCH_FAILURE


def test_more_shared_memory_must_be_asked_for(run: Run) -> None:
    assert run(GOOD, shared_bytes=48 * 1024)[0] == SUCCESS
    assert run(GOOD, shared_bytes=48 * 1024 + 1)[0] == INVALID_VALUE
