"""The tensor-core kernels' index arithmetic against brute force, over thousands of random shapes."""

from __future__ import annotations

import ctypes
import random

import numpy as np
import pytest

LONG = ctypes.c_int64


@pytest.fixture
def rng() -> random.Random:
    return random.Random(0)


def test_kv_length_is_clamped(geometry_library: ctypes.CDLL, rng: random.Random) -> None:
    for _ in range(1000):
        kv_len, length = rng.randint(1, 300), rng.choice([rng.randint(-5, 310), -(2**62), 2**62])
        clipped = geometry_library.clip_kv_length(LONG(length), LONG(kv_len))
        assert clipped == sum(1 for key in range(kv_len) if key < length)


def test_visible_keys_are_those_of_the_definition(geometry_library: ctypes.CDLL, rng: random.Random) -> None:
    for _ in range(3000):
        group, q_len, valid = rng.randint(1, 9), rng.randint(1, 80), rng.randint(0, 120)
        row, is_causal = rng.randrange(q_len * group), rng.random() < 0.7
        position = row // group
        expected = sum(1 for key in range(valid) if not is_causal or key <= position + valid - q_len)
        assert geometry_library.visible_keys(row, group, LONG(q_len), valid, int(is_causal)) == expected


@pytest.mark.parametrize("chunks", [8, 10, 12, 16])
def test_swizzle_has_no_bank_conflict(geometry_library: ctypes.CDLL, chunks: int) -> None:
    """A chunk covers 4 of the 32 banks: 8 lanes of a matrix hit all banks once where positions differ mod 8."""
    positions = np.zeros((64, chunks), np.int32)
    geometry_library.swizzled_chunks(chunks, positions.ctypes.data_as(ctypes.c_void_p))
    assert np.array_equal(np.sort(positions.reshape(-1)), np.arange(64 * chunks))  # a permutation
    assert np.array_equal(positions // chunks, np.repeat(np.arange(64)[:, None], chunks, axis=1))  # within its row
    for first in range(0, 64, 8):
        for chunk in range(chunks):
            assert len(set(positions[first : first + 8, chunk] % 8)) == 8
    plain = np.arange(64 * chunks).reshape(64, chunks)
    assert len(set(plain[:8, 0] % 8)) < 8  # without it there would be


def test_every_tile_is_worked_on_once_and_long_ones_first(geometry_library: ctypes.CDLL, rng: random.Random) -> None:
    for _ in range(2000):
        batch, kv_heads, row_tiles = rng.randint(1, 4), rng.randint(1, 6), rng.randint(1, 12)
        splits, heads = rng.randint(1, 5), batch * kv_heads
        section = rng.randint(1, heads)
        found = np.zeros((heads * row_tiles * splits, 5), np.int64)
        blocks = geometry_library.works(
            batch, kv_heads, row_tiles, section, splits, found.ctypes.data_as(ctypes.c_void_p)
        )
        assert blocks == len(found)
        expected = {
            (b, h, t, s, ((b * kv_heads + h) * row_tiles + t) * splits + s)
            for b in range(batch)
            for h in range(kv_heads)
            for t in range(row_tiles)
            for s in range(splits)
        }
        assert {tuple(work) for work in found.tolist()} == expected
        sections = (found[:, 0] * kv_heads + found[:, 1]) // section
        assert np.all(np.diff(sections) >= 0)  # one section after the other
        for index in range(sections.max() + 1):
            assert np.all(np.diff(found[sections == index, 2]) <= 0)  # its last rows, the longest, first


def test_splits_cover_the_keys_that_are_there(geometry_library: ctypes.CDLL, rng: random.Random) -> None:
    for _ in range(3000):
        visible, tile_keys, splits = rng.randint(0, 3000), rng.choice([32, 64]), rng.randint(1, 70)
        ranges = np.zeros((splits, 2), np.int32)
        for split in range(splits):
            address = ranges[split].ctypes.data_as(ctypes.c_void_p)
            geometry_library.keys_of_split(visible, tile_keys, splits, split, address)
        tiles = [tile for begin, end in ranges.tolist() for tile in range(begin, end)]
        assert tiles == [tile for tile in range(visible) if tile * tile_keys < visible]
        used = geometry_library.splits_in_use(visible, tile_keys, splits)
        lengths = ranges[:, 1] - ranges[:, 0]
        assert np.all(lengths[:used] > 0)
        assert np.all(lengths[used:] == 0)
        assert len(set(lengths[: max(used - 1, 0)].tolist())) <= 1


def test_split_choice_fills_the_gpu_within_the_workspace(geometry_library: ctypes.CDLL, rng: random.Random) -> None:
    geometry_library.most_slots.restype = LONG
    for _ in range(3000):
        tiles, kv_len, sm_count = rng.randint(1, 2000), rng.randint(1, 40000), rng.randint(1, 300)
        slots = geometry_library.most_slots(LONG(tiles), LONG(kv_len), 64)
        splits = geometry_library.choose_splits(LONG(tiles), LONG(kv_len), 64, sm_count, LONG(slots))
        key_tiles = -(-kv_len // 64)
        assert 1 <= splits <= key_tiles
        assert splits == 1 or splits * tiles <= min(slots, 2 * sm_count)
        is_full = (splits + 1) * tiles > min(1024, 2 * sm_count)
        assert is_full or splits == key_tiles
        assert geometry_library.most_slots(LONG(tiles - rng.randrange(tiles)), LONG(kv_len), 64) <= slots
        assert geometry_library.most_slots(LONG(tiles), LONG(kv_len - rng.randrange(kv_len)), 64) <= slots
        assert geometry_library.choose_splits(LONG(tiles), LONG(kv_len), 64, sm_count, LONG(0)) == 1


def test_sections_fit_into_the_cache(geometry_library: ctypes.CDLL, rng: random.Random) -> None:
    for _ in range(1000):
        heads, head_bytes, cache = rng.randint(1, 100), rng.randint(1, 10**8), rng.randint(0, 10**8)
        section = geometry_library.heads_in_cache(LONG(heads), LONG(head_bytes), LONG(cache))
        assert 1 <= section <= heads
        assert section == 1 or section * head_bytes <= cache / 2
        assert section == heads or (section + 1) * head_bytes > cache / 2
