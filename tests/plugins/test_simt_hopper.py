"""The emulation of sm_90 that the Hopper kernel's tests stand on: layouts as the PTX ISA states them, faults seen.

Layouts are stated here from the figures of the ISA, once more and in other words than in the emulation: an operand is
an array of swizzle atoms, each of which has eight lines of 128, 64 or 32 bytes.
"""

from __future__ import annotations

import ctypes
import itertools
import subprocess
from pathlib import Path

import numpy as np
import pytest
from attention_case import Array, as_float64, encode

SPANS = [128, 64, 32]
MODE = {128: 1, 64: 2, 32: 3}  # "Matrix Descriptor Format", bits 62 and 63
TENSOR_MAP_MODE = {0: 0, 32: 1, 64: 2, 128: 3}  # CUtensorMapSwizzle
SUCCESS, LAUNCH_FAILURE = 0, 719


@pytest.fixture(scope="module")
def selftest(tmp_path_factory: pytest.TempPathFactory, cxx: str, host_flags: list[str]) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("selftest_hopper") / "selftest_hopper.so"
    source = Path(__file__).parent / "simt" / "selftest_hopper.cpp"
    subprocess.run([cxx, *host_flags, "-O1", "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
    return ctypes.CDLL(str(path))


def pointer(array: Array) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)


def chunk_in_line(line: int, chunk: int, span: int) -> int:
    """Where a line of an atom keeps its 16-byte chunk `chunk`: figures 156 ("MN major 128B swizzling") to 161.

    128 bytes: line i exchanges chunks by i; 64 bytes: two lines to 128 bytes, which count as one; 32 bytes: four lines.
    """
    return chunk ^ (line * span // 128) % (span // 16)


def store_atoms(memory: Array, lines: Array, span: int, line_offsets: list[int]) -> None:
    """Puts each line of 16-bit elements at its byte offset, chunk by chunk."""
    for line, (elements, offset) in enumerate(zip(lines, line_offsets, strict=True)):
        for chunk, eight in enumerate(elements.reshape(-1, 8)):
            start = (offset + 16 * chunk_in_line(line % 8, chunk, span)) // 2
            memory[start : start + 8] = eight


def descriptor(leading: int, stride: int, span: int) -> ctypes.c_uint64:
    return ctypes.c_uint64((leading >> 4) << 16 | (stride >> 4) << 32 | MODE[span] << 62)


# "Matrix Fragments for wgmma.mma_async.m64nNk16", figures 148 and 149: thread t of the warpgroup.
THREAD = np.arange(128)
A_ROW = np.stack([THREAD // 32 * 16 + THREAD % 32 // 4 + 8 * (i in (2, 3, 6, 7)) for i in range(8)], axis=1)
A_COLUMN = np.stack([THREAD % 4 * 2 + i % 2 + 8 * (i >= 4) for i in range(8)], axis=1)
D_ROW = np.stack([THREAD // 32 * 16 + THREAD % 32 // 4 + 8 * (i % 4 >= 2) for i in range(64)], axis=1)
D_COLUMN = np.stack([i // 4 * 8 + THREAD % 4 * 2 + i % 2 for i in range(64)], axis=1)


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_operands_with_k_innermost(selftest: ctypes.CDLL, span: int, dtype: str) -> None:
    """A (64 x 16) and B (16 x 128): atoms of 8 rows; in a line of more than 32 bytes, K begins at the third chunk."""
    rng = np.random.default_rng(0)
    a, b = (encode(rng.standard_normal(shape), dtype).view(np.uint16) for shape in ((64, 16), (128, 16)))
    memory = rng.integers(0, 2**16, 16 * 1024).astype(np.uint16)
    skipped = 16 if span > 32 else 0  # elements of K before this step's
    for matrix, start, stride in ((a, 0, 8 * span), (b, 16 * 1024, 8 * span)):
        lines = np.zeros((len(matrix), span // 2), np.uint16)
        lines[:, skipped : skipped + 16] = matrix
        offsets = [start + row // 8 * stride + row % 8 * span for row in range(len(matrix))]
        store_atoms(memory, lines, span, offsets)
    start_d = rng.standard_normal((64, 128)).astype(np.float32)
    d = np.ascontiguousarray(start_d[D_ROW, D_COLUMN])
    step = ctypes.c_uint64(descriptor(16, 8 * span, span).value + (skipped * 2 >> 4))
    for schedule in range(2):
        found = d.copy()
        offset = ctypes.c_uint32(16 * 1024 + skipped * 2)
        a_place = ctypes.c_uint64(step.value)
        b_place = descriptor(16, 8 * span, span)
        status = selftest.run_product(
            int(dtype == "bfloat16"), schedule, pointer(memory), a_place, b_place, offset, None, pointer(found)
        )
        assert status == SUCCESS
        product = np.zeros((64, 128))
        product[D_ROW, D_COLUMN] = found
        expected = start_d + as_float64(a.view(bits_of(dtype)), dtype) @ as_float64(b.view(bits_of(dtype)), dtype).T
        np.testing.assert_allclose(product, expected, atol=2e-5)  # 16 products in float32


def bits_of(dtype: str) -> type:
    return np.uint16 if dtype == "bfloat16" else np.float16


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_in_registers_and_b_with_n_innermost(selftest: ctypes.CDLL, span: int, dtype: str) -> None:
    """B (16 x 128): atoms of span / 2 columns by 8 of K; `leading` from atom to atom along N, `stride` along K."""
    rng = np.random.default_rng(1)
    a, b = (encode(rng.standard_normal(shape), dtype).view(np.uint16) for shape in ((64, 16), (16, 128)))
    memory = rng.integers(0, 2**16, 16 * 1024).astype(np.uint16)
    columns, stride, leading = span // 2, 8 * span, 40 * span
    for atom in range(128 // columns):
        lines = b[:, atom * columns : (atom + 1) * columns]
        offsets = [16 * 1024 + atom * leading + k // 8 * stride + k % 8 * span for k in range(16)]
        store_atoms(memory, lines, span, offsets)
    registers = np.ascontiguousarray(a[A_ROW, A_COLUMN]).view(np.uint32)
    d = np.zeros((128, 64), np.float32)
    place, offset = descriptor(leading, stride, span), ctypes.c_uint32(16 * 1024)
    status = selftest.run_product(
        int(dtype == "bfloat16"), 0, pointer(memory), place, place, offset, pointer(registers), pointer(d)
    )
    assert status == SUCCESS
    product = np.zeros((64, 128))
    product[D_ROW, D_COLUMN] = d
    expected = as_float64(a.view(bits_of(dtype)), dtype) @ as_float64(b.view(bits_of(dtype)), dtype)
    np.testing.assert_allclose(product, expected, atol=2e-5)


@pytest.mark.parametrize("span", [0, *SPANS])
@pytest.mark.parametrize("first", [(0, 0, 1, 0), (-3, -2, 0, 1), (8, 5, 1, 1), (64, 0, 0, 0), (0, 100, 0, 0)], ids=str)
def test_boxes_arrive_swizzled_and_zero_outside(selftest: ctypes.CDLL, span: int, first: tuple[int, ...]) -> None:
    """PTX ISA, "Tensors: Swizzling Modes" and "Tiled mode": the box row by row, zeros beyond the tensor."""
    rng = np.random.default_rng(2)
    tensor = rng.integers(1, 2**16, (2, 2, 21, 48)).astype(np.uint16)  # batch, head, position, width: 40 of 48 used
    width, rows = (span or 64) // 2, 24
    sizes, strides = (np.array(x, np.uint64) for x in ((40, 21, 2, 2), (96, 21 * 96, 2 * 21 * 96)))
    box = np.array([width, rows, 1, 1], np.uint32)
    expected = np.zeros((rows, width), np.uint16)
    for row, column in itertools.product(range(rows), range(width)):
        at = (first[0] + column, first[1] + row, first[2], first[3])
        if all(0 <= x < size for x, size in zip(at, (40, 21, 2, 2), strict=True)):
            expected[row, column] = tensor[at[3], at[2], at[1], at[0]]
    for schedule in range(3):
        out = np.zeros((rows, width), np.uint16)
        coordinates = np.array(first, np.int32)
        arguments = (tensor, sizes, strides, box)
        mode = TENSOR_MAP_MODE[span]
        status = selftest.run_copy(schedule, *map(pointer, arguments), mode, pointer(coordinates), pointer(out))
        assert status == SUCCESS
        plain = out.reshape(rows, width // 8, 8)
        if span:
            plain = np.stack(
                [row[[chunk_in_line(i, c, span) for c in range(width // 8)]] for i, row in enumerate(plain)]
            )
        assert np.array_equal(plain.reshape(rows, width), expected)


@pytest.mark.parametrize(
    ("strides", "box"),
    [
        ((98, 4032, 8064), (64, 8)),
        ((96, 2**40, 8064), (64, 8)),
        ((96, 4032, 8064), (72, 8)),
        ((96, 4032, 8064), (64, 257)),
    ],
    ids=["stride no multiple of 16", "stride too long", "box wider than the swizzle", "box too tall"],
)
def test_maps_that_the_driver_refuses(selftest: ctypes.CDLL, strides: tuple[int, ...], box: tuple[int, int]) -> None:
    tensor = np.zeros(64 * 1024, np.uint16)
    arrays = [np.array((48, 21, 2, 2), np.uint64), np.array(strides, np.uint64), np.array((*box, 1, 1), np.uint32)]
    assert selftest.run_copy(0, pointer(tensor), *map(pointer, arrays), 3, pointer(np.zeros(4, np.int32)), None) == -1


RIGHT = 0
STOPPED = {
    "mbarrier not initialised": 1,
    "mbarrier not shown to the copy engine": 2,
    "fewer bytes announced than come": 3,
    "more bytes announced than come": 4,
    "more arrivals than expected": 5,
    "no fence between stores and wgmma": 6,
    "no fence between registers and wgmma": 7,
    "accumulators written to under a product": 9,
    "no wait for a product": 11,
    "an arrival that nobody waits for": 12,
    "different counts at a named barrier": 13,
}
READS_TOO_EARLY, OVERWRITES_WEIGHTS, NO_TURN, READS_COPY_TOO_EARLY = 8, 10, 14, 15


def run_fault(library: ctypes.CDLL, which: int, schedule: int) -> tuple[int, Array]:
    out = np.zeros(256, np.float32)
    return library.run_fault(which, schedule, pointer(out)), out


@pytest.mark.parametrize("schedule", range(5))
def test_right_steps_give_the_result(selftest: ctypes.CDLL, schedule: int) -> None:
    status, out = run_fault(selftest, RIGHT, schedule)
    assert status == SUCCESS
    assert np.all(out == 8)


@pytest.mark.parametrize("fault", STOPPED)
def test_wrong_steps_stop_the_kernel(selftest: ctypes.CDLL, fault: str) -> None:
    assert run_fault(selftest, STOPPED[fault], 0)[0] == LAUNCH_FAILURE


def test_a_turn_that_nobody_takes_stops_the_kernel(selftest: ctypes.CDLL) -> None:
    assert run_fault(selftest, NO_TURN, 0)[0] == LAUNCH_FAILURE


@pytest.mark.parametrize("fault", [READS_TOO_EARLY, OVERWRITES_WEIGHTS, READS_COPY_TOO_EARLY])
def test_what_is_read_or_overwritten_too_early_is_wrong(selftest: ctypes.CDLL, fault: int) -> None:
    results = [run_fault(selftest, fault, schedule) for schedule in range(5)]
    assert any(status != SUCCESS or not np.all(out == 8) for status, out in results)
