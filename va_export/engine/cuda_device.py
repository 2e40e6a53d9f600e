"""GPU memory and a stream without PyTorch, through Polygraphy's thin CUDA wrapper."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from va_export.engine.tensorrt_api import Flavor, select_polygraphy_backend
from va_export.errors import VaExportError


@dataclass
class DeviceBuffer:
    """An array on the GPU.

    Attributes:
        address: device pointer.
        shape, dtype: of the array; the allocation may be larger.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size_bytes(self) -> int:
        """Size of the array."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class CudaDevice:
    """A CUDA device with one stream. Everything that it allocates is freed by `close`.

    Args:
        index: the GPU's number as CUDA counts (after CUDA_VISIBLE_DEVICES).

    Raises:
        VaExportError: there is no driver, no GPU of that number, or no CUDA runtime library.
    """

    def __init__(self, flavor: Flavor, index: int = 0) -> None:
        _require_gpu(index)
        self.index = index
        select_polygraphy_backend(flavor)
        _show_runtime_wheels()
        cuda: Any = importlib.import_module("polygraphy.cuda")
        self._copy_kinds = cuda.MemcpyKind
        with _cuda_errors("cannot use the CUDA runtime library"):
            self._cuda = cuda.wrapper()
            self.activate()
            self.stream: int = self._cuda.create_stream()
        self._allocations: dict[int, int] = {}

    def activate(self) -> None:
        """Make this the calling thread's current device, which CUDA's and TensorRT's calls act upon."""
        with _cuda_errors(f"GPU {self.index} cannot be used"):
            self._cuda.check(self._cuda.handle.cudaSetDevice(ctypes.c_int(self.index)))

    def allocate(self, size_bytes: int) -> int:
        """Device memory of at least one byte, since TensorRT wants an address for empty tensors too."""
        self.activate()
        with _cuda_errors(f"cannot allocate {size_bytes / 2**20:.1f} MiB on the GPU"):
            address: int = self._cuda.malloc(max(size_bytes, 1))
        self._allocations[address] = size_bytes
        return address

    def zeros(self, shape: Sequence[int], dtype: np.dtype[Any]) -> DeviceBuffer:
        """A new array of zeros."""
        shape = tuple(shape)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        address = self.allocate(size)  # makes this the current device, too
        with _cuda_errors("cannot clear GPU memory"):
            self._cuda.check(self._cuda.handle.cudaMemset(ctypes.c_void_p(address), 0, ctypes.c_size_t(size)))
        return DeviceBuffer(address, shape, dtype)

    def free(self, address: int) -> None:
        """Give memory back that `allocate` returned."""
        self.activate()
        del self._allocations[address]
        self._cuda.free(address)

    def upload(self, array: npt.NDArray[Any], address: int) -> None:
        """Copy a contiguous array to the device; it may be changed as soon as this returns."""
        self.activate()
        with _cuda_errors("cannot copy to the GPU"):
            self._cuda.memcpy(address, array.ctypes.data, array.nbytes, self._copy_kinds.HostToDevice, self.stream)

    def download(self, buffer: DeviceBuffer) -> npt.NDArray[Any]:
        """Copy an array from the device, after all work on the stream."""
        self.activate()
        array: npt.NDArray[Any] = np.empty(buffer.shape, buffer.dtype)
        with _cuda_errors("cannot copy from the GPU"):
            self._cuda.memcpy(
                array.ctypes.data, buffer.address, array.nbytes, self._copy_kinds.DeviceToHost, self.stream
            )
        self.synchronize()
        return array

    def copy_from(self, source: CudaDevice, buffer: DeviceBuffer, address: int) -> None:
        """Copy an array from another GPU, in this device's stream; the source's work on it must be done.

        Where the two GPUs cannot reach each other's memory, CUDA stages the copy through the host by itself.
        """
        self.activate()
        with _cuda_errors(f"cannot copy from GPU {source.index} to GPU {self.index}"):
            self._cuda.check(
                self._cuda.handle.cudaMemcpyPeerAsync(
                    ctypes.c_void_p(address),
                    ctypes.c_int(self.index),
                    ctypes.c_void_p(buffer.address),
                    ctypes.c_int(source.index),
                    ctypes.c_size_t(buffer.size_bytes),
                    ctypes.c_void_p(self.stream),
                )
            )

    def synchronize(self) -> None:
        """Wait for the stream."""
        self.activate()
        with _cuda_errors("a computation on the GPU failed"):
            self._cuda.stream_synchronize(self.stream)

    def close(self) -> None:
        """Free everything; the device cannot be used afterwards. A second call does nothing."""
        for address in list(self._allocations):
            self.free(address)
        if self.stream:
            self.activate()
            self._cuda.destroy_stream(self.stream)
            self.stream = 0


def _require_gpu(index: int) -> None:
    fix = "run this on a machine with an NVIDIA GPU, or use --backend onnxruntime"
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError as error:
        raise VaExportError("there is no NVIDIA driver on this machine", where="TensorRT runtime", fix=fix) from error
    status = driver.cuInit(0)
    count = ctypes.c_int(0)
    if status != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        raise VaExportError(
            f"the NVIDIA driver finds no usable GPU (cuInit gave {status})", where="TensorRT runtime", fix=fix
        )
    if index >= count.value:
        raise VaExportError(
            f"there is no GPU {index}: the driver shows {count.value}, from 0 on",
            where="--devices",
            fix="name GPUs that are there (nvidia-smi lists them), or change CUDA_VISIBLE_DEVICES",
        )


def _show_runtime_wheels() -> None:
    """Let Polygraphy find libcudart in NVIDIA's wheels: it knows the folder of CUDA 12's wheel, not of 13's."""
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or []) if spec is not None else []
    found = sorted({str(path.parent) for root in roots for path in Path(root).glob("*/lib/libcudart.so*")})
    known = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    # Polygraphy reads the variable itself; the system's loader has read it before and is not affected.
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join([*filter(None, known), *(p for p in found if p not in known)])


@contextlib.contextmanager
def _cuda_errors(what: str) -> Iterator[None]:
    try:
        yield
    except VaExportError:
        raise
    except Exception as error:  # PolygraphyException, or OSError where libcudart cannot be loaded
        raise VaExportError(
            f"{what}: {str(error).strip()}", where="TensorRT runtime", fix="check the GPU with nvidia-smi"
        ) from error
