"""The Hopper kernel's own source (TMA, mbarriers, wgmma), run on the CPU by the emulator, against float64."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import numpy as np
import pytest
from attention_case import Array, Case, Inputs, as_float64, encode, launcher, random_inputs, reference, run_on_host

KERNEL_VARIABLE = "VA_EXPORT_ATTENTION_KERNEL"

# As in test_anchored_attention_kernel.py: the weights' rounding and the result's.
TOLERANCE = {"float16": 2 * 2.0**-11 + 4e-6, "bfloat16": 2 * 2.0**-8 + 4e-6}
HOPPER, CACHE_BYTES = 90, 20_000  # a small cache, so that plans have sections
SCHEDULES = range(6)


@pytest.fixture
def hopper(host_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[ctypes.CDLL]:
    """The kernels on an emulated sm_90 with two multiprocessors, so that blocks have several works; then set back."""
    host_library.simt_wgmma_products.restype = ctypes.c_int64
    monkeypatch.setenv(KERNEL_VARIABLE, "tensor_core")
    host_library.simt_set_gpu(HOPPER, 2, CACHE_BYTES)
    yield host_library
    host_library.simt_set_gpu(80, 4, 1 << 20)
    host_library.simt_set_tensor_maps(1)


def run(library: ctypes.CDLL, case: Case, inputs: Inputs, schedule: int = 0) -> Array:
    """The kernel's result, after checking that wgmma worked it out."""
    before = library.simt_wgmma_products()
    result = run_on_host(launcher(library, schedule), case, inputs)
    sees_keys = case.kv_length is None or max(case.kv_length) > 0
    assert (library.simt_wgmma_products() > before) == sees_keys
    return result


def assert_right(library: ctypes.CDLL, case: Case, inputs: Inputs | None = None, schedule: int = 0) -> Array:
    inputs = inputs or random_inputs(case)
    expected, magnitude = reference(case, inputs)
    actual = run(library, case, inputs, schedule)
    error = np.abs(actual - expected)
    assert np.all(error <= TOLERANCE[case.dtype] * magnitude + 6e-8), np.max(error / (magnitude + 1e-4))
    return actual


EDGES = [
    Case(q_len, kv_len, query_heads=1, dtype="float16", is_causal=is_causal)
    for q_len, kv_len, is_causal in (
        (17, 1, True),
        (17, 17, True),
        (63, 65, False),
        (64, 64, True),
        (127, 128, True),
        (128, 129, False),
        (129, 127, True),
        (17, 391, True),
        (140, 20, True),
        (257, 255, True),
        (65, 512, True),
    )
]
HEADS = [
    Case(23, 170, batch=2, query_heads=heads, kv_heads=kv_heads, dtype=dtype, kv_length=(170, length))
    for heads, kv_heads, dtype, length in (
        (2, 2, "float16", 0),
        (8, 2, "bfloat16", 133),
        (7, 1, "float16", 128),
        (4, 1, "float16", 1),
    )
]
WIDTHS = [
    Case(40, 140, query_heads=2, head_dim=width, value_head_dim=value, dtype=dtype, packed_heads=packed)
    for width, value, dtype, packed in (
        (8, None, "float16", False),
        (64, 128, "bfloat16", True),
        (80, None, "float16", True),
        (80, 72, "bfloat16", False),
        (96, None, "float16", False),
        (96, 8, "bfloat16", True),
        (104, 72, "bfloat16", False),
        (128, None, "float16", True),
        (128, 40, "float16", False),
    )
]
GAINS = [
    Case(30, 140, batch=2, gains=gains, dtype=dtype, is_causal=is_causal)
    for gains, dtype, is_causal in (
        ("none", "float16", True),
        ("wide", "float16", True),
        ("wide", "bfloat16", False),
        ("zero", "float16", True),
    )
]
OPTIONS = [
    Case(25, 70, head_dim=16, scale=8.0, dtype="float16"),
    Case(25, 70, head_dim=16, scale=1e-7, dtype="float16"),
    Case(30, 40, batch=3, shared_gains=True, dtype="float16"),
]


@pytest.mark.parametrize("case", [*EDGES, *HEADS, *WIDTHS, *GAINS, *OPTIONS], ids=str)
def test_matches_float64(hopper: ctypes.CDLL, case: Case) -> None:
    assert_right(hopper, case)


# Several works a block, of which some have foreign values (NaN, infinities) in their last key tile, some no key at all.
RACES = [
    Case(200, 400, batch=2, query_heads=1, kv_heads=1, dtype="float16", kv_length=(400, 170)),
    Case(30, 100, batch=3, query_heads=3, kv_heads=1, dtype="float16", kv_length=(60, 0, 99)),
    Case(150, 300, batch=2, query_heads=2, head_dim=128, dtype="bfloat16", kv_length=(60, 257), is_causal=False),
    Case(140, 270, query_heads=2, head_dim=80, gains="wide", dtype="float16", packed_heads=True),
]


@pytest.mark.parametrize("case", RACES, ids=str)
def test_result_depends_neither_on_order_nor_on_blocks(hopper: ctypes.CDLL, case: Case) -> None:
    """Threads, copies and products in several orders; one multiprocessor, two, or as many as there are works."""
    inputs = random_inputs(case)
    first = assert_right(hopper, case, inputs)
    for schedule in SCHEDULES:
        hopper.simt_set_gpu(HOPPER, (1, 2, 100)[schedule % 3], CACHE_BYTES)
        assert np.array_equal(run(hopper, case, inputs, schedule), first)


@pytest.mark.parametrize("gain", [1e-6, 1e-3, 1.0, 100.0, 1e4])
@pytest.mark.parametrize("value_gain", [1e-6, 0.0, 1.0, 1e4])
def test_gains_of_any_size_in_every_tile(hopper: ctypes.CDLL, gain: float, value_gain: float) -> None:
    """Half of the tiles have this gain and half have 1: folded and guarded tiles meet in one row, in both orders."""
    for first in (0, 128):
        case = Case(20, 256, query_heads=1, head_dim=16, dtype="float16", gains="none", is_causal=False)
        inputs = random_inputs(case)
        inputs.value[:] = as_float64(encode(inputs.value * min(1.0, 1 / (value_gain or 1.0)), "float16"), "float16")
        inputs.key_log_gain[:, first : first + 128] = np.float32(np.log(gain))
        inputs.value_gain[:, first : first + 128] = np.float32(value_gain)
        assert_right(hopper, case, inputs)


def test_rows_without_keys_are_zero(hopper: ctypes.CDLL) -> None:
    case = Case(40, 20, batch=2, kv_length=(20, 0), dtype="float16")
    actual = assert_right(hopper, case)
    assert not actual[0, :, :20].any()
    assert np.all(actual[0, :, 20:].any(axis=-1))
    assert not actual[1].any()


def test_a_visible_nan_is_not_hidden(hopper: ctypes.CDLL) -> None:
    case = Case(20, 70, query_heads=1, dtype="float16")
    inputs = random_inputs(case)
    inputs.key[0, 0, 60] = np.nan  # causal: seen by the queries from 10 on
    actual = run(hopper, case, inputs)
    assert np.all(np.isnan(actual[0, 0, 10:]))
    assert np.all(np.isfinite(actual[0, 0, :10]))


FALLBACK = Case(40, 90, query_heads=2, dtype="float16")


def result_of(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, kernel: str) -> tuple[Array, bool]:
    """The result with this choice of kernel, and whether wgmma worked it out."""
    monkeypatch.setenv(KERNEL_VARIABLE, kernel)
    before = library.simt_wgmma_products()
    result = run_on_host(launcher(library), FALLBACK, random_inputs(FALLBACK))
    return result, library.simt_wgmma_products() > before


def test_kernels_are_chosen_by_name_and_gpu(hopper: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    simple, mma = (result_of(hopper, monkeypatch, name) for name in ("simple", "mma_sync"))
    assert not simple[1]
    assert not mma[1]
    assert not np.array_equal(simple[0], mma[0])  # they round the weights differently
    assert result_of(hopper, monkeypatch, "tensor_core")[1]
    for architecture in (80, 86, 89, 100, 120):
        hopper.simt_set_gpu(architecture, 2, CACHE_BYTES)
        result, has_wgmma = result_of(hopper, monkeypatch, "tensor_core")
        assert not has_wgmma
        np.testing.assert_allclose(result, mma[0], atol=2e-3)  # the tiles, so the order of sums, differ


def test_without_tensor_maps_mma_sync_takes_over(hopper: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    mma, _ = result_of(hopper, monkeypatch, "mma_sync")
    hopper.simt_set_tensor_maps(0)  # a driver before CUDA 12
    result, has_wgmma = result_of(hopper, monkeypatch, "tensor_core")
    assert not has_wgmma
    np.testing.assert_array_equal(result, mma)


def test_strides_beyond_the_copy_engine_are_left_to_mma_sync(hopper: ctypes.CDLL) -> None:
    """A stride of 2^40 bytes: the one head there is begins at the tensor's start, so nothing there is touched."""
    case = Case(40, 90, query_heads=1, batch=2, dtype="float16", kv_length=(90, 0))
    inputs = random_inputs(case)
    launch = launcher(hopper)

    def launch_with_long_stride(params: ctypes.Structure) -> int:
        params.key_strides.batch = 1 << 39  # type: ignore[attr-defined]  # elements of two bytes
        return launch(params)  # type: ignore[arg-type]

    before = hopper.simt_wgmma_products()
    actual = run_on_host(launch_with_long_stride, case, inputs)
    assert hopper.simt_wgmma_products() == before
    expected, magnitude = reference(case, inputs)
    assert np.all(np.abs(actual - expected) <= TOLERANCE["float16"] * magnitude + 6e-8)
