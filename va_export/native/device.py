"""A GPU through the plugin library alone (plugins/device): memory, streams and graphs without PyTorch or libcudart."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from va_export.errors import VaExportError
from va_export.native import load_library

Array = np.ndarray[Any, Any]
_ALIGNMENT = 256


class _Identity(ctypes.Structure):
    """VaDeviceIdentity of plugins/device/device.h."""

    _fields_ = (
        ("struct_bytes", ctypes.c_size_t),
        ("name", ctypes.c_char * 256),
        ("uuid", ctypes.c_uint8 * 16),
        ("major", ctypes.c_int32),
        ("minor", ctypes.c_int32),
        ("sm_count", ctypes.c_int32),
        ("cuda_version", ctypes.c_int32),
    )


@dataclass(frozen=True)
class Identity:
    """A GPU, or the MIG instance that takes its place, as the driver tells of it.

    Attributes:
        uuid: 32 hexadecimal digits.
        compute_capability: such as "9.0".
        cuda_version: the newest that the driver serves, such as "13.0".
    """

    name: str
    uuid: str
    compute_capability: str
    sm_count: int
    cuda_version: str


def identify(path: Path, device: int) -> Identity:
    """What the library at `path` sees of a GPU; no context is created.

    Raises:
        VaExportError: no such GPU, no driver, or one that is too old for the library.
    """
    library = _bind(load_library(path))
    found = _Identity(struct_bytes=ctypes.sizeof(_Identity))
    _check(library, library.va_device_identify(device, ctypes.byref(found)), f"GPU {device} cannot be used")
    return Identity(
        found.name.decode(errors="replace"),
        bytes(found.uuid).hex(),
        f"{found.major}.{found.minor}",
        found.sm_count,
        f"{found.cuda_version // 1000}.{found.cuda_version % 1000 // 10}",
    )


class Device:
    """A GPU in this process, with two streams, and memory of one block that `reset` empties.

    Args:
        path: of the library.
        room: bytes of the block.

    Raises:
        VaExportError: as all methods: CUDA refused.
    """

    def __init__(self, path: Path, index: int, room: int) -> None:
        self.library = _bind(load_library(path))
        self.index = index
        self._check(self.library.va_device_use(index), "it cannot be used")
        self.streams = (self._create_stream(), self._create_stream())
        block = ctypes.c_void_p()
        self._check(self.library.va_device_allocate(ctypes.byref(block), room), f"no {room} bytes of memory")
        assert block.value is not None
        self._block, self._room, self._used = block.value, room, 0

    def reset(self) -> None:
        """Take all memory back that `allocate` and `upload` gave."""
        self._used = 0

    def allocate(self, size: int) -> int:
        """The address of `size` bytes, aligned to 256."""
        begin = -(-self._used // _ALIGNMENT) * _ALIGNMENT
        if begin + size > self._room:
            raise VaExportError(f"{begin + size} bytes of GPU memory, of {self._room}", where=f"GPU {self.index}")
        self._used = begin + size
        return self._block + begin

    def upload(self, array: Array) -> int:
        """The address of a copy."""
        array = np.ascontiguousarray(array)
        address = self.allocate(array.nbytes)
        self.write(address, array)
        return address

    def write(self, address: int, array: Array) -> None:
        """Copy a contiguous array to an address."""
        self._check(self.library.va_device_copy(address, array.ctypes.data, array.nbytes), "a copy failed")

    def read(self, address: int, array: Array) -> Array:
        """Fill a contiguous array from an address, after all work of the GPU; returns it."""
        self._check(self.library.va_device_copy(array.ctypes.data, address, array.nbytes), "a computation failed")
        return array

    def synchronize(self, stream: int) -> None:
        """Wait for a stream."""
        self._check(self.library.va_device_synchronize(stream), "a computation failed")

    def capture(self, queue: Callable[[], None]) -> int:
        """What `queue` puts on the first stream, as a graph; nothing of it runs."""
        graph = ctypes.c_void_p()
        self._check(self.library.va_device_begin_capture(self.streams[0]), "a capture cannot begin")
        try:
            queue()
        finally:
            error = self.library.va_device_end_capture(self.streams[0], ctypes.byref(graph))
        self._check(error, "it cannot be captured in a CUDA graph")
        assert graph.value is not None
        return graph.value

    def replay(self, graph: int) -> float:
        """Run a graph on the first stream and wait for it: milliseconds."""
        milliseconds = ctypes.c_float()
        error = self.library.va_device_replay(graph, self.streams[0], ctypes.byref(milliseconds))
        self._check(error, "a graph did not run")
        return milliseconds.value

    def free_graph(self, graph: int) -> None:
        """Free a graph."""
        self._check(self.library.va_device_free_graph(graph), "a graph cannot be freed")

    def _create_stream(self) -> int:
        stream = ctypes.c_void_p()
        self._check(self.library.va_device_create_stream(ctypes.byref(stream)), "it cannot be used")
        assert stream.value is not None
        return stream.value

    def _check(self, error: int, what: str) -> None:
        _check(self.library, error, f"GPU {self.index}: {what}")


def _check(library: ctypes.CDLL, error: int, what: str) -> None:
    if error:
        words = library.va_plugins_error_string(error).decode()
        raise VaExportError(
            f"{what}: {words} (CUDA error {error})",
            where="plugin library",
            fix="check the GPU with nvidia-smi; the library needs a driver of release 580 or newer",
        )


def _bind(library: ctypes.CDLL) -> ctypes.CDLL:
    """Declares the functions of device.h on a loaded library."""
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    to_pointer = ctypes.POINTER(ctypes.c_void_p)
    for name, arguments in (
        ("identify", [number, ctypes.POINTER(_Identity)]),
        ("use", [number]),
        ("allocate", [to_pointer, size]),
        ("copy", [pointer, pointer, size]),
        ("create_stream", [to_pointer]),
        ("synchronize", [pointer]),
        ("begin_capture", [pointer]),
        ("end_capture", [pointer, to_pointer]),
        ("free_graph", [pointer]),
        ("replay", [pointer, pointer, ctypes.POINTER(ctypes.c_float)]),
    ):
        function = getattr(library, f"va_device_{name}")
        function.argtypes, function.restype = arguments, ctypes.c_int
    return library
