"""An engine, its context and a GPU that live in host memory, with TensorRT's method names.

The "engine" is a decoder of one layer: it writes its input behind the past into the cache, in place, and returns the
cache's sum. Addresses are keys into a table of byte arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np

from va_export.errors import VaExportError
from va_export.tensorrt.cuda_device import DeviceBuffer

CAPACITY = 8
SHAPES = {
    "tokens": (-1, -1),
    "past_length": (-1,),
    "past_key_values.0.key": (-1, 1, CAPACITY, 1),
    "present.0.key": (-1, 1, CAPACITY, 1),
    "total": (-1,),
    "doubled": (-1, -1),
}
TYPES = {"past_length": "INT64"}
PREFILL = {
    "tokens": ((1, 1), (1, 4), (2, 6)),
    "past_length": ((1,), (1,), (2,)),
    "past_key_values.0.key": ((1, 1, 8, 1), (1, 1, 8, 1), (2, 1, 8, 1)),
}
DECODE = {**PREFILL, "tokens": ((1, 1), (1, 1), (2, 1))}


class TensorIOMode(Enum):
    INPUT = 1
    OUTPUT = 2


@dataclass
class FakeGraph:
    """A captured graph: what was queued is done again at every launch, on the memory that it was captured with."""

    queue: Callable[[], None]
    destroyed: bool = False


class FakeDevice:
    """The methods of CudaDevice, on host memory."""

    def __init__(self) -> None:
        self.stream = 7
        self.memory: dict[int, np.ndarray[Any, np.dtype[np.uint8]]] = {}
        self.uploads: list[int] = []
        self.activations = 0
        self.closed = False
        self.later: list[tuple[DeviceBuffer, np.ndarray[Any, Any]]] = []
        self.refuses_capture = False
        self.captures = self.launches = 0
        self._next = 1000

    def activate(self) -> None:
        self.activations += 1

    def copy_from(self, source: FakeDevice, buffer: DeviceBuffer, address: int) -> None:
        self.memory[address][: buffer.size_bytes] = source.memory[buffer.address][: buffer.size_bytes]

    def allocate(self, size_bytes: int) -> int:
        self._next += 1
        self.memory[self._next] = np.full(max(size_bytes, 1), 0xAB, np.uint8)
        return self._next

    def zeros(self, shape: Sequence[int], dtype: np.dtype[Any]) -> DeviceBuffer:
        buffer = DeviceBuffer(0, tuple(shape), dtype)
        buffer.address = self.allocate(buffer.size_bytes)
        self.memory[buffer.address][:] = 0
        return buffer

    def free(self, address: int) -> None:
        del self.memory[address]

    def upload(self, array: np.ndarray[Any, Any], address: int) -> None:
        assert array.flags.c_contiguous
        self.uploads.append(address)
        self.memory[address][: array.nbytes] = array.reshape(-1).view(np.uint8)

    def view(self, address: int, shape: Sequence[int], dtype: Any) -> np.ndarray[Any, Any]:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.memory[address][:size].view(dtype).reshape(shape)

    def download(self, buffer: DeviceBuffer) -> np.ndarray[Any, Any]:
        return self.view(buffer.address, buffer.shape, buffer.dtype).copy()

    def clear(self, buffer: DeviceBuffer) -> None:
        self.memory[buffer.address][:] = 0

    def pinned(self, shape: Sequence[int], dtype: Any) -> np.ndarray[Any, Any]:
        return np.full(shape, 77, dtype)

    def download_later(self, buffer: DeviceBuffer, target: np.ndarray[Any, Any]) -> None:
        self.later.append((buffer, target))

    @contextmanager
    def timed(self) -> Iterator[None]:
        yield

    def capture(self, queue: Callable[[], None]) -> FakeGraph:
        if self.refuses_capture:
            raise VaExportError("operation not permitted when stream is capturing", where="stream")
        self.captures += 1
        return FakeGraph(queue)

    def launch(self, graph: FakeGraph) -> None:
        assert not graph.destroyed
        self.launches += 1
        graph.queue()

    def destroy(self, graph: FakeGraph) -> None:
        graph.destroyed = True

    def synchronize(self) -> None:
        for buffer, target in self.later:
            target[...] = self.download(buffer)
        self.later.clear()

    def close(self) -> None:
        self.closed = True


class FakeContext:
    """IExecutionContext."""

    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.profiles: list[int] = []

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle == self.device.stream
        self.profiles.append(profile_index)
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        self.shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in PREFILL if name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch, length = self.shapes["tokens"]
        return {"total": (batch,), "doubled": (batch, length)}.get(name, (batch, 1, CAPACITY, 1))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return memory != 0

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert set(self.addresses) == set(SHAPES)
        assert self.addresses["present.0.key"] == self.addresses["past_key_values.0.key"]
        batch, length = self.shapes["tokens"]
        tokens = self._view("tokens", (batch, length), np.float32)
        past = self._view("past_length", (batch,), np.int64)
        cache = self._view("present.0.key", (batch, 1, CAPACITY, 1), np.float32)
        for row in range(batch):
            cache[row, 0, past[row] : past[row] + length, 0] = tokens[row]
        self._view("total", (batch,), np.float32)[:] = cache.sum((1, 2, 3))
        self._view("doubled", (batch, length), np.float32)[:] = 2 * tokens
        return True

    def _view(self, name: str, shape: Sequence[int], dtype: Any) -> np.ndarray[Any, Any]:
        return self.device.view(self.addresses[name], shape, dtype)


class FakeEngine:
    """ICudaEngine."""

    num_io_tensors = len(SHAPES)
    num_optimization_profiles = 2

    def __init__(self, device: FakeDevice) -> None:
        self.context = FakeContext(device)

    def get_tensor_name(self, index: int) -> str:
        return list(SHAPES)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in PREFILL else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=TYPES.get(name, "FLOAT"))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return SHAPES[name]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Sequence[int]]:
        return (PREFILL, DECODE)[profile_index][name]

    def create_runtime_config(self) -> Any:
        return SimpleNamespace(cuda_graph_strategy="disabled")

    def create_execution_context(self, runtime_config: Any = None) -> FakeContext:
        self.strategy = "disabled" if runtime_config is None else runtime_config.cuda_graph_strategy
        return self.context
