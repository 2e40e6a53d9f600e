"""The CPU emulation that the kernel tests stand on: it runs right kernels and notices wrong ones."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from attention_case import Array, as_float64, encode

GOOD, NO_BARRIER, ONE_WARP, HALF_A_WARP, SHUFFLES, OVERFLOW, MISALIGNED, WAITS, DOES_NOT_WAIT = range(9)
SUCCESS, INVALID_VALUE, LAUNCH_FAILURE = 0, 1, 719
Run = Callable[..., tuple[int, list[int]]]


@pytest.fixture(scope="module")
def selftest(tmp_path_factory: pytest.TempPathFactory, cxx: str, host_flags: list[str]) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("selftest") / "selftest.so"
    source = Path(__file__).parent / "simt" / "selftest.cpp"
    subprocess.run([cxx, *host_flags, "-O1", "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
    return ctypes.CDLL(str(path))


@pytest.fixture(scope="module")
def run(selftest: ctypes.CDLL) -> Run:
    def call(kernel: int, schedule: int = 0, shared_bytes: int = 256) -> tuple[int, list[int]]:
        out = np.zeros(64, np.int32)
        status = selftest.run_selftest(
            kernel, schedule, ctypes.c_size_t(shared_bytes), out.ctypes.data_as(ctypes.c_void_p)
        )
        return status, out.tolist()

    return call


@pytest.mark.parametrize("schedule", [0, 1, 2, 3])
def test_right_kernel_gives_one_result(run: Run, schedule: int) -> None:
    assert run(GOOD, schedule) == (SUCCESS, [*range(1, 64), 0])


def test_a_race_shows_between_schedules(run: Run) -> None:
    assert len({tuple(run(NO_BARRIER, schedule)[1]) for schedule in range(4)}) > 1


@pytest.mark.parametrize("kernel", [ONE_WARP, HALF_A_WARP, SHUFFLES, OVERFLOW, MISALIGNED])
def test_wrong_kernel_is_an_error(run: Run, kernel: int) -> None:
    assert run(kernel)[0] == LAUNCH_FAILURE


def test_more_shared_memory_must_be_asked_for(run: Run) -> None:
    assert run(GOOD, shared_bytes=48 * 1024)[0] == SUCCESS
    assert run(GOOD, shared_bytes=48 * 1024 + 1)[0] == INVALID_VALUE


def test_a_copy_that_nobody_waits_for_is_not_there(run: Run) -> None:
    assert run(WAITS, shared_bytes=1024) == (SUCCESS, [7] * 64)
    assert run(DOES_NOT_WAIT, shared_bytes=1024) == (SUCCESS, [-1] * 64)


MEETS, DOES_NOT_MEET, ONE_STAYS_AWAY, BLOCK_OVERFLOW = range(4)


def run_cooperatively(library: ctypes.CDLL, kernel: int, schedule: int) -> tuple[int, list[int]]:
    out = np.zeros(64, np.int32)
    return library.run_cooperative_selftest(kernel, schedule, out.ctypes.data_as(ctypes.c_void_p)), out.tolist()


@pytest.mark.parametrize("schedule", [0, 1, 2, 3])
def test_blocks_of_a_cooperative_launch_meet(selftest: ctypes.CDLL, schedule: int) -> None:
    status, out = run_cooperatively(selftest, MEETS, schedule)
    assert status == SUCCESS
    assert (out[:4], out[32:36], out[63]) == ([1, 2, 3, 4], [2, 3, 4, 1], 4)


def test_a_race_between_blocks_shows(selftest: ctypes.CDLL) -> None:
    found = {tuple(run_cooperatively(selftest, DOES_NOT_MEET, schedule)[1][32:36]) for schedule in range(4)}
    assert found != {(2, 3, 4, 1)}


@pytest.mark.parametrize("kernel", [ONE_STAYS_AWAY, BLOCK_OVERFLOW])
@pytest.mark.parametrize("schedule", [0, 2])
def test_wrong_cooperative_kernel_is_an_error(selftest: ctypes.CDLL, kernel: int, schedule: int) -> None:
    assert run_cooperatively(selftest, kernel, schedule)[0] == LAUNCH_FAILURE


def words(elements: Array) -> Array:
    """Pairs of 16-bit elements as the words of registers: the first of a pair in the lower half."""
    return np.ascontiguousarray(elements).view(np.uint32)


def warp_operations(library: ctypes.CDLL, is_bfloat16: bool, *arrays: Array) -> None:
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in arrays]
    assert library.run_warp_operations(int(is_bfloat16), *pointers) == SUCCESS


# PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type": row and column of each element in lane l.
GROUP, IN_GROUP = np.arange(32) // 4, np.arange(32) % 4
A_ROW = np.stack([GROUP + (8 if 2 <= i < 4 or i >= 6 else 0) for i in range(8)], axis=1)
A_COLUMN = np.stack([IN_GROUP * 2 + (i & 1) + (8 if i >= 4 else 0) for i in range(8)], axis=1)
B_ROW = np.stack([IN_GROUP * 2 + (i & 1) + (8 if i >= 2 else 0) for i in range(4)], axis=1)
B_COLUMN = np.stack([GROUP] * 4, axis=1)
C_ROW = np.stack([GROUP + (8 if i >= 2 else 0) for i in range(4)], axis=1)
C_COLUMN = np.stack([IN_GROUP * 2 + (i & 1) for i in range(4)], axis=1)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mma_multiplies_matrices_laid_out_as_the_isa_says(selftest: ctypes.CDLL, dtype: str) -> None:
    rng = np.random.default_rng(0)
    a_bits, b_bits = (encode(rng.standard_normal(shape), dtype) for shape in ((16, 16), (16, 8)))
    start = rng.standard_normal((16, 8)).astype(np.float32)
    c = np.ascontiguousarray(start[C_ROW, C_COLUMN])
    unused = np.zeros((32, 4), np.uint32)
    a, b = words(a_bits[A_ROW, A_COLUMN]), words(b_bits[B_ROW, B_COLUMN])
    warp_operations(selftest, dtype == "bfloat16", np.zeros((32, 8), np.uint16), a, b, unused, unused.copy(), c)
    product = np.zeros((16, 8))
    product[C_ROW, C_COLUMN] = c
    np.testing.assert_allclose(product, start + as_float64(a_bits, dtype) @ as_float64(b_bits, dtype), atol=1e-5)


def test_ldmatrix_gives_each_lane_its_elements(selftest: ctypes.CDLL) -> None:
    """PTX ISA, ldmatrix: lane l receives row l / 4, elements 2 (l % 4) and the next, of each 8 x 8 matrix."""
    shared = np.random.default_rng(0).integers(0, 2**16, (32, 8)).astype(np.uint16)
    plain, transposed = np.zeros((32, 4), np.uint32), np.zeros((32, 4), np.uint32)
    zeros = np.zeros((32, 4), np.uint32)
    warp_operations(selftest, False, shared, zeros, zeros, plain, transposed, np.zeros((32, 4), np.float32))
    for matrix in range(4):
        tile = shared[8 * matrix : 8 * matrix + 8]
        for found, source in ((plain, tile), (transposed, tile.T)):
            assert np.array_equal(found[:, matrix], words(source).reshape(32))


# PTX ISA, "Matrix Fragments for mma.m16n8k8" with .tf32: row and column of each element in lane l; c as above.
TF32_A_ROW = np.stack([GROUP + (8 if i % 2 else 0) for i in range(4)], axis=1)
TF32_A_COLUMN = np.stack([IN_GROUP + (4 if i >= 2 else 0) for i in range(4)], axis=1)
TF32_B_ROW = np.stack([IN_GROUP + (4 if i else 0) for i in range(2)], axis=1)
TF32_B_COLUMN = np.stack([GROUP] * 2, axis=1)


def run_tf32(library: ctypes.CDLL, a: Array, b: Array, start: Array) -> tuple[int, Array]:
    """(status, a @ b + start) of words a [16, 8] and b [8, 8]."""
    fragments = a[TF32_A_ROW, TF32_A_COLUMN], b[TF32_B_ROW, TF32_B_COLUMN], start[C_ROW, C_COLUMN]
    arrays = [np.ascontiguousarray(fragment) for fragment in fragments]
    status = library.run_tf32_operation(*(array.ctypes.data_as(ctypes.c_void_p) for array in arrays))
    product = np.zeros((16, 8), np.float32)
    product[C_ROW, C_COLUMN] = arrays[2]
    return status, product


def test_tf32_mma_multiplies_matrices_laid_out_as_the_isa_says(selftest: ctypes.CDLL) -> None:
    """And rounds towards zero: against the exact sums of products, which float64 holds."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32).view(np.uint32) & 0xFFFFE000 for shape in ((16, 8), (8, 8)))
    start = rng.standard_normal((16, 8)).astype(np.float32)
    status, product = run_tf32(selftest, a, b, start)
    exact = start + a.view(np.float32).astype(np.float64) @ b.view(np.float32).astype(np.float64)
    assert status == SUCCESS
    assert (np.abs(product) <= np.abs(exact) * (1 + 1e-15)).all()
    assert (np.abs(product - exact) < np.spacing(np.abs(exact).astype(np.float32))).all()


def test_an_operand_that_is_no_tf32_is_an_error(selftest: ctypes.CDLL) -> None:
    start, good = np.zeros((16, 8), np.float32), np.full((16, 8), 1.5, np.float32).view(np.uint32)
    bad = good.copy()
    bad[3, 5] |= 1 << 12
    assert run_tf32(selftest, good, good[:8], start)[0] == SUCCESS
    assert run_tf32(selftest, bad, good[:8], start)[0] == LAUNCH_FAILURE
    assert run_tf32(selftest, good, bad[:8], start)[0] == LAUNCH_FAILURE


def test_a_split_number_is_the_sum_of_two_tf32_ones(selftest: ctypes.CDLL) -> None:
    """`big` is the nearest (11 bits), ties away from zero, and both together are off by less than 2^-21."""
    rng = np.random.default_rng(1)
    x = (rng.standard_normal(4000) * 2.0 ** rng.integers(-80, 80, 4000)).astype(np.float32)
    x[:6] = 0.0, 1.0, -1.0, 1.0 + 2.0**-11, -1.0 - 2.0**-11, 1.0 - 2.0**-24
    big, small = np.zeros(4000, np.uint32), np.zeros(4000, np.uint32)
    selftest.run_split_tf32(4000, *(array.ctypes.data_as(ctypes.c_void_p) for array in (x, big, small)))
    assert not ((big | small) & 0x1FFF).any()
    high, low = (word.view(np.float32).astype(np.float64) for word in (big, small))
    assert (np.abs(high - x) <= np.abs(x) * 2.0**-11).all()
    assert (np.abs(high + low - x) <= np.abs(x) * 2.0**-21).all()
    assert high[:6].tolist() == [0.0, 1.0, -1.0, 1.0 + 2.0**-10, -1.0 - 2.0**-10, 1.0]
    for odd in (np.nan, np.inf, -np.inf):
        one = np.array([odd, -odd], np.float32)
        selftest.run_split_tf32(2, *(array.ctypes.data_as(ctypes.c_void_p) for array in (one, big, small)))
        assert np.isnan(big[:2].view(np.float32) + small[:2].view(np.float32)).all()  # what overflowed shows
    canonical = np.array([0x7FFFFFFF], np.uint32)  # the NaN of NVIDIA's GPUs
    selftest.run_split_tf32(1, *(array.ctypes.data_as(ctypes.c_void_p) for array in (canonical, big, small)))
    assert np.isnan(small[:1].view(np.float32)).all()
