"""GPU memory and a stream without PyTorch, through Polygraphy's thin CUDA wrapper."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from va_export.errors import VaExportError
from va_export.tensorrt.api import Flavor, select_polygraphy_backend

# cudaStreamCaptureModeThreadLocal: what other threads do to the GPU meanwhile is their own affair.
_CAPTURE_THREAD_LOCAL = ctypes.c_int(1)
_DRIVER_FIX = "check the GPU with nvidia-smi: CUDA 13 and the plugin library need a driver of release 580 or newer"
_RUNTIME_FIX = f"pip install 'va-export[rtx]' brings libcudart (nvidia-cuda-runtime); {_DRIVER_FIX}"


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

    def row(self, index: int) -> DeviceBuffer:
        """Row `index` of the first axis as an array of one row, in the same memory."""
        row = DeviceBuffer(self.address, (1, *self.shape[1:]), self.dtype)
        row.address += index * row.size_bytes
        return row

    def rows_of(self, columns: slice) -> list[DeviceBuffer]:
        """Of an array (1, R, C, W): columns [start, stop) of each of the R, (C', W) each, in the same memory."""
        _, rows, count, width = self.shape
        start, step = columns.start * width * self.dtype.itemsize, count * width * self.dtype.itemsize
        shape = (columns.stop - columns.start, width)
        return [DeviceBuffer(self.address + row * step + start, shape, self.dtype) for row in range(rows)]


@dataclass(frozen=True)
class CudaGraph:
    """An instantiated graph: the handle `cudaGraphExec_t`."""

    executable: int


class CudaDevice:
    """A CUDA device with one stream. Everything that it allocates is freed by `close`.

    Args:
        index: the GPU's number as CUDA counts (after CUDA_VISIBLE_DEVICES).

    Raises:
        VaExportError: there is no driver, no GPU of that number, or no CUDA runtime library.
    """

    def __init__(self, flavor: Flavor, index: int = 0) -> None:
        require_gpu(index)
        self.index = index
        select_polygraphy_backend(flavor)
        _show_runtime_wheels()
        cuda: Any = importlib.import_module("polygraphy.cuda")
        self._copy_kinds = cuda.MemcpyKind
        with _cuda_errors("cannot use the CUDA runtime library", _RUNTIME_FIX):
            self._cuda = cuda.wrapper()
            self.activate()
            self.stream: int = self._cuda.create_stream()
            self._before, self._after = self._create_event(), self._create_event()
        self._allocations: dict[int, int] = {}
        self._pinned: list[int] = []
        self._is_timing = False
        self.gpu_milliseconds = 0.0
        """What the work inside `timed` has taken on the GPU, by events; whoever reads it may set it back to 0."""

    def activate(self) -> None:
        """Make this the calling thread's current device, which CUDA's and TensorRT's calls act upon."""
        with _cuda_errors(f"GPU {self.index} cannot be used", _DRIVER_FIX):
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
        buffer = DeviceBuffer(self.allocate(size), shape, dtype)
        self.clear(buffer)
        return buffer

    def clear(self, buffer: DeviceBuffer) -> None:
        """Set an array to zeros."""
        self.activate()
        with _cuda_errors("cannot clear GPU memory"):
            self._cuda.check(
                self._cuda.handle.cudaMemset(ctypes.c_void_p(buffer.address), 0, ctypes.c_size_t(buffer.size_bytes))
            )

    def free(self, address: int) -> None:
        """Give memory back that `allocate` returned."""
        self.activate()
        del self._allocations[address]
        self._cuda.free(address)

    def pinned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """A host array that the GPU can write while the host goes on; it lives as long as the device."""
        self.activate()
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        pointer = ctypes.c_void_p()
        with _cuda_errors("cannot allocate pinned memory"):
            self._cuda.check(self._cuda.handle.cudaMallocHost(ctypes.byref(pointer), ctypes.c_size_t(max(size, 1))))
        assert pointer.value is not None
        self._pinned.append(pointer.value)
        memory = (ctypes.c_uint8 * size).from_address(pointer.value)
        return np.ctypeslib.as_array(memory).view(dtype).reshape(shape)

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

    def download_later(self, buffer: DeviceBuffer, target: npt.NDArray[Any]) -> None:
        """Queue a copy into a pinned array; it is there after `synchronize`."""
        with _cuda_errors("cannot copy from the GPU"):
            self._cuda.memcpy(
                target.ctypes.data, buffer.address, target.nbytes, self._copy_kinds.DeviceToHost, self.stream
            )

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
            if self._is_timing:
                self._is_timing = False
                elapsed = ctypes.c_float()
                self._cuda.check(
                    self._cuda.handle.cudaEventElapsedTime(ctypes.byref(elapsed), self._before, self._after)
                )
                self.gpu_milliseconds += elapsed.value

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """What is queued inside is counted in `gpu_milliseconds` by the next `synchronize`, which must come first."""
        stream = ctypes.c_void_p(self.stream)
        with _cuda_errors("an event cannot be recorded"):
            self._cuda.check(self._cuda.handle.cudaEventRecord(self._before, stream))
        yield
        with _cuda_errors("an event cannot be recorded"):
            self._cuda.check(self._cuda.handle.cudaEventRecord(self._after, stream))
            self._is_timing = True

    def capture(self, queue: Callable[[], None]) -> CudaGraph:
        """What `queue` puts on the stream, as a graph; nothing of it runs.

        Raises:
            VaExportError: something that cannot be captured. The stream is usable again then.
        """
        self.activate()
        handle, stream = self._cuda.handle, ctypes.c_void_p(self.stream)
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        with _cuda_errors("the work cannot be captured in a CUDA graph"):
            self._cuda.check(handle.cudaStreamBeginCapture(stream, _CAPTURE_THREAD_LOCAL))
            try:
                queue()
            finally:
                status = handle.cudaStreamEndCapture(stream, ctypes.byref(graph))
            self._cuda.check(status)
            try:
                # The same name and arguments from CUDA 11.4 to 13; cudaGraphInstantiate changed its arguments.
                self._cuda.check(
                    handle.cudaGraphInstantiateWithFlags(ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
                )
            finally:
                handle.cudaGraphDestroy(graph)
        assert executable.value is not None
        return CudaGraph(executable.value)

    def launch(self, graph: CudaGraph) -> None:
        """Queue all that a graph holds."""
        with _cuda_errors("a CUDA graph cannot be launched"):
            self._cuda.check(
                self._cuda.handle.cudaGraphLaunch(ctypes.c_void_p(graph.executable), ctypes.c_void_p(self.stream))
            )

    def destroy(self, graph: CudaGraph) -> None:
        """Free a graph."""
        self.activate()
        self._cuda.handle.cudaGraphExecDestroy(ctypes.c_void_p(graph.executable))

    def memory_in_use(self) -> int:
        """Bytes of the GPU's memory that are taken, by this process (engines, caches) and by others."""
        self.activate()
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        with _cuda_errors("the GPU does not tell its memory"):
            self._cuda.check(self._cuda.handle.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)))
        return total.value - free.value

    def _create_event(self) -> ctypes.c_void_p:
        event = ctypes.c_void_p()
        self._cuda.check(self._cuda.handle.cudaEventCreate(ctypes.byref(event)))
        return event

    def close(self) -> None:
        """Free everything; the device cannot be used afterwards. A second call does nothing."""
        for address in list(self._allocations):
            self.free(address)
        if self.stream:
            self.activate()
            for pointer in self._pinned:
                self._cuda.handle.cudaFreeHost(ctypes.c_void_p(pointer))
            for event in (self._before, self._after):
                self._cuda.handle.cudaEventDestroy(event)
            self._cuda.destroy_stream(self.stream)
            self.stream = 0


def require_gpu(index: int) -> None:
    """Check that there is a driver and a GPU of that number; no context is created.

    Raises:
        VaExportError: one of them is missing.
    """
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
def _cuda_errors(what: str, fix: str = "check the GPU with nvidia-smi") -> Iterator[None]:
    try:
        yield
    except VaExportError:
        raise
    except Exception as error:  # PolygraphyException, or OSError where libcudart cannot be loaded
        raise VaExportError(f"{what}: {str(error).strip()}", where="TensorRT runtime", fix=fix) from error
