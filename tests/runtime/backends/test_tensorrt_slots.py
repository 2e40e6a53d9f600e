"""Slots of a KV cache on the GPU, read and written head by head; the GPU's memory is the host's here."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from va_export.runtime.backends.tensorrt import TensorRTBackend
from va_export.runtime.backends.tensorrt_session import KvCache
from va_export.tensorrt.cuda_device import DeviceBuffer

HEADS, CAPACITY, WIDTH = 3, 7, 4


class HostMemory:
    """CudaDevice's copies, between addresses of the host."""

    def upload(self, array: npt.NDArray[Any], address: int) -> None:
        assert array.flags.c_contiguous
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def download(self, buffer: DeviceBuffer) -> npt.NDArray[Any]:
        array = np.empty(buffer.shape, buffer.dtype)
        ctypes.memmove(array.ctypes.data, buffer.address, array.nbytes)
        return array


def test_slots_come_back_as_they_were_and_nothing_else_changes() -> None:
    backend = object.__new__(TensorRTBackend)
    backend._device_of = {"decoder_0": HostMemory(), "decoder_1": HostMemory()}  # type: ignore[dict-item]
    random = np.random.default_rng(0)
    arrays = {
        part: [random.normal(size=(1, HEADS, CAPACITY, WIDTH)).astype(np.float16) for _ in range(2)]
        for part in backend._device_of
    }
    before = {part: [array.copy() for array in all_] for part, all_ in arrays.items()}
    cache = {
        part: KvCache(
            {str(i): DeviceBuffer(array.ctypes.data, array.shape, array.dtype) for i, array in enumerate(all_)}
        )
        for part, all_ in arrays.items()
    }
    kept = backend.read_slots(cache, slice(1, 4))
    for part, all_ in before.items():
        for array, found in zip(all_, kept[part], strict=True):
            np.testing.assert_array_equal(found, array[0, :, 1:4])
    assert backend.read_slots(cache, slice(0, 0))["decoder_1"][1].shape == (HEADS, 0, WIDTH)
    backend.write_slots(cache, 3, kept)
    for part, all_ in arrays.items():
        for array, was in zip(all_, before[part], strict=True):
            expected = was.copy()
            expected[0, :, 3:6] = was[0, :, 1:4]
            np.testing.assert_array_equal(array, expected)
