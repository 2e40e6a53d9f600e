"""What the Hopper kernel (TMA, mbarriers, wgmma) does alone: its own source, run on the CPU by the emulator."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from attention_case import Array, Case, launcher, random_inputs, reference, run_on_host
from tensor_core_case import TOLERANCE, TensorCoreKernel

KERNEL_VARIABLE = "VA_EXPORT_ATTENTION_KERNEL"
SCHEDULES = range(6)

# Several work tiles a block, of which some have stale values (NaN, infinities) in their last key tile, some no key.
RACES = [
    Case(200, 400, batch=2, query_heads=1, kv_heads=1, dtype="float16", kv_length=(400, 170)),
    Case(30, 100, batch=3, query_heads=3, kv_heads=1, dtype="float16", kv_length=(60, 0, 99)),
    Case(150, 300, batch=2, query_heads=2, head_dim=128, dtype="bfloat16", kv_length=(60, 257), is_causal=False),
    Case(140, 270, query_heads=2, head_dim=80, gains="wide", dtype="float16", packed_heads=True),
]


@pytest.mark.parametrize("case", RACES, ids=str)
def test_result_depends_neither_on_order_nor_on_blocks(hopper: TensorCoreKernel, case: Case) -> None:
    """Threads, copies and products in several orders; one multiprocessor, two, or as many as there are work tiles."""
    inputs = random_inputs(case)
    first = hopper.assert_right(case, inputs)
    for schedule in SCHEDULES:
        hopper.set_gpu((1, 2, 100)[schedule % 3])
        assert np.array_equal(hopper.run(case, inputs, schedule), first)


FALLBACK = Case(40, 90, query_heads=2, dtype="float16")


def result_of(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, kernel: str) -> tuple[Array, bool]:
    """The result with this choice of kernel, and whether wgmma worked it out."""
    monkeypatch.setenv(KERNEL_VARIABLE, kernel)
    before = library.simt_wgmma_products()
    result = run_on_host(launcher(library), FALLBACK, random_inputs(FALLBACK))
    return result, library.simt_wgmma_products() > before


def test_kernels_are_chosen_by_name_and_gpu(hopper: TensorCoreKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    simple, mma = (result_of(hopper.library, monkeypatch, name) for name in ("simple", "mma_sync"))
    assert not simple[1]
    assert not mma[1]
    assert not np.array_equal(simple[0], mma[0])  # they round the weights differently
    assert result_of(hopper.library, monkeypatch, "tensor_core")[1]
    for architecture in (80, 86, 89, 100, 120):
        hopper.set_gpu(2, architecture)
        result, has_wgmma = result_of(hopper.library, monkeypatch, "tensor_core")
        assert not has_wgmma
        np.testing.assert_allclose(result, mma[0], atol=2e-3)  # the tiles, so the order of sums, differ


def test_without_tensor_maps_mma_sync_takes_over(hopper: TensorCoreKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    mma, _ = result_of(hopper.library, monkeypatch, "mma_sync")
    hopper.library.simt_set_tensor_maps(0)  # a driver before CUDA 12
    result, has_wgmma = result_of(hopper.library, monkeypatch, "tensor_core")
    assert not has_wgmma
    np.testing.assert_array_equal(result, mma)


def test_strides_beyond_the_copy_engine_are_left_to_mma_sync(hopper: TensorCoreKernel) -> None:
    """A stride of 2^40 bytes: the one head there is begins at the tensor's start, so nothing there is touched."""
    case = Case(40, 90, query_heads=1, batch=2, dtype="float16", kv_length=(90, 0))
    inputs = random_inputs(case)
    launch = launcher(hopper.library)

    def launch_with_long_stride(params: ctypes.Structure) -> int:
        params.key_strides.batch = 1 << 39  # type: ignore[attr-defined]  # elements of two bytes
        return launch(params)  # type: ignore[arg-type]

    before = hopper.library.simt_wgmma_products()
    actual = run_on_host(launch_with_long_stride, case, inputs)
    assert hopper.library.simt_wgmma_products() == before
    expected, magnitude = reference(case, inputs)
    assert np.all(np.abs(actual - expected) <= TOLERANCE["float16"] * magnitude + 6e-8)
