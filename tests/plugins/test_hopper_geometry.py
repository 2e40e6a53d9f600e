"""The Hopper kernel's index arithmetic against brute force: its schedule, and where products find their operands."""

from __future__ import annotations

import ctypes
import random

import numpy as np
import pytest

LONG = ctypes.c_int64
SHARED_LIMIT = 227 * 1024


@pytest.fixture
def rng() -> random.Random:
    return random.Random(0)


def loads_of_blocks(library: ctypes.CDLL, lengths: list[int], blocks: int) -> list[int]:
    """The summed lengths of each block's works, after checking that every work has one block."""
    library.work_of_round.restype = LONG
    rounds = -(-len(lengths) // blocks)
    dealt = [
        [library.work_of_round(LONG(block), LONG(blocks), LONG(r)) for r in range(rounds)] for block in range(blocks)
    ]
    assert sorted(w for works in dealt for w in works if w < len(lengths)) == list(range(len(lengths)))
    assert all(works == sorted(works) for works in dealt)  # the longest first
    return [sum(lengths[w] for w in works if w < len(lengths)) for works in dealt]


def test_every_work_has_one_block_and_blocks_are_balanced(geometry_library: ctypes.CDLL, rng: random.Random) -> None:
    for _ in range(500):
        works, blocks = rng.randint(1, 700), rng.randint(1, 140)
        lengths = sorted((rng.randint(0, 50) for _ in range(works)), reverse=True)
        loads = loads_of_blocks(geometry_library, lengths, blocks)
        # Two rounds give a block the i-th longest and the i-th shortest of theirs; at most one round is left over.
        assert max(loads) - min(loads) <= lengths[0]


def test_causal_tiles_of_a_full_gpu_are_nearly_even(geometry_library: ctypes.CDLL) -> None:
    """2048 positions, 32 heads, 132 multiprocessors: within a tenth of the average."""
    lengths = sorted(list(range(1, 17)) * 32, reverse=True)
    loads = loads_of_blocks(geometry_library, lengths, 132)
    assert max(loads) <= 1.1 * sum(lengths) / 132


def place_by_copy_engine(row: int, column: int, rows: int, span: int) -> int:
    """Byte of an element in a tile of panels: CUDA Driver API, boxes of `rows` positions by `span` bytes, swizzled."""
    panel, byte = divmod(2 * column, span)
    chunk, line = byte // 16, row * span // 128
    return panel * rows * span + row * span + (chunk ^ line % (span // 16)) * 16 + byte % 16


def place_by_wgmma(descriptor: int, major: int, k: int, is_k_major: bool) -> int:
    """Byte of an operand's element: PTX ISA, "Matrix Descriptor Format" and "Canonical Layouts" for 16-bit elements."""
    start, leading, stride = (((descriptor >> shift) & 0x3FFF) << 4 for shift in (0, 16, 32))
    span = {1: 128, 2: 64, 3: 32}[descriptor >> 62]
    if is_k_major:
        byte = start + major // 8 * stride + major % 8 * span + 2 * k
    else:
        atom, inside = divmod(major, span // 2)
        byte = start + atom * leading + 2 * inside + k % 8 * span + k // 8 * stride
    return byte ^ ((byte >> 7 & (span // 16 - 1)) << 4)


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128])
def test_wgmma_reads_what_the_copy_engine_wrote(geometry_library: ctypes.CDLL, head_dim: int) -> None:
    """Every element of every step, for tiles of 64 rows within 128 (queries) and of 128 (keys, values)."""
    library = geometry_library
    library.matrix_descriptor.restype = ctypes.c_uint64
    span, rows, tile = library.swizzle_bytes(head_dim), 128, 9 * 1024
    assert head_dim * 2 % span == 0
    panel_bytes = rows * span
    for step in range(head_dim // 16):  # scores: head_dim innermost, from rows 64 on as the second consumer does
        step_byte = library.column_step_byte(step, rows, span)
        descriptor = library.matrix_descriptor(tile + 64 * span, 16, span) + (step_byte >> 4)
        for row in range(64):
            for k in range(16):
                expected = tile + place_by_copy_engine(64 + row, 16 * step + k, rows, span)
                assert place_by_wgmma(descriptor, row, k, is_k_major=True) == expected
    for step in range(rows // 16):  # values: head_dim is N, the keys are K
        descriptor = library.matrix_descriptor(tile, panel_bytes, span) + (library.row_step_byte(step, span) >> 4)
        for column in range(head_dim):
            for k in range(16):
                expected = tile + place_by_copy_engine(16 * step + k, column, rows, span)
                assert place_by_wgmma(descriptor, column, k, is_k_major=False) == expected


def test_descriptors_reach_all_of_shared_memory(geometry_library: ctypes.CDLL) -> None:
    """Adding a step to a descriptor must not carry from the address (14 bits of 16 bytes) into the next field."""
    geometry_library.matrix_descriptor.restype = ctypes.c_uint64
    for span in (128, 64, 32):
        for address in range(0, SHARED_LIMIT, 1024):
            descriptor = geometry_library.matrix_descriptor(address, 16384, span)
            assert (descriptor & 0x3FFF) << 4 == address
            assert (descriptor >> 16 & 0x3FFF) << 4 == 16384
            assert (descriptor >> 32 & 0x3FFF) << 4 == 8 * span
    assert SHARED_LIMIT < 1 << 18


def test_stale_values_are_found_by_counting(geometry_library: ctypes.CDLL, rng: random.Random) -> None:
    for _ in range(2000):
        tile_keys, kv_len = rng.choice([64, 128]), rng.randint(1, 600)
        valid = rng.randint(0, kv_len)
        end_tile = rng.randint(0, -(-valid // tile_keys))
        loaded = np.arange(end_tile * tile_keys)
        expected = bool(np.any((loaded >= valid) & (loaded < kv_len)))
        assert bool(geometry_library.has_stale_values(end_tile, tile_keys, valid, LONG(kv_len))) == expected
