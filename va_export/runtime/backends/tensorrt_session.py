"""Run one engine on the GPU, without PyTorch. Caches stay on the device and are written in place."""

from __future__ import annotations

import mmap
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from va_export.errors import VaExportError
from va_export.tensorrt.api import Flavor, TensorRT, load_tensorrt
from va_export.tensorrt.build_log import create_build_log
from va_export.tensorrt.cuda_device import CudaDevice, DeviceBuffer
from va_export.tensorrt.engine_shapes import PAST_PREFIX, PRESENT_PREFIX, EngineShapes
from va_export.tensorrt.types import Context, Engine, Runtime

Array = npt.NDArray[Any]
_ALIGNMENT = 256  # of every address that TensorRT is given (IExecutionContext::setTensorAddress)
GRAPHS_VARIABLE = "VA_EXPORT_CUDA_GRAPHS"


@dataclass(frozen=True)
class KvCache:
    """A KV cache on the GPU, zero at first: one buffer an input `past_key_values.*`.

    A run writes new slots into the same memory, so a cache belongs to one sequence (or batch of them) at a
    time.
    """

    buffers: Mapping[str, DeviceBuffer]

    @property
    def size_bytes(self) -> int:
        """Size of all its buffers."""
        return sum(buffer.size_bytes for buffer in self.buffers.values())

    def row(self, index: int) -> KvCache:
        """One row of the batch, in the same memory.

        Raises:
            VaExportError: TensorRT cannot take it from where it lies.
        """
        rows = {name: buffer.row(index) for name, buffer in self.buffers.items()}
        if any(row.address % _ALIGNMENT for row in rows.values()):
            raise VaExportError(
                f"row {index} of the KV cache does not begin at a multiple of {_ALIGNMENT} bytes",
                where="answer_batch",
                fix="export with a --max-kv-cache-capacity that is a multiple of 64",
            )
        return KvCache(rows)


class TensorRTSession:
    """One engine, ready to run.

    Args:
        engine_path: an engine built by the same version of the same TensorRT.
        flavor: which TensorRT.
        plugin_library: needed by engines with plugins.
        device: where to run; None opens one, which `close` then frees. Sessions that hand arrays to each
            other on the GPU share one.

    Raises:
        VaExportError: no GPU, no such file, or an engine that this GPU or this TensorRT cannot run.
    """

    def __init__(
        self,
        engine_path: Path,
        flavor: Flavor,
        plugin_library: Path | None = None,
        device: CudaDevice | None = None,
    ) -> None:
        api = load_tensorrt(flavor)
        self._owns_device = device is None
        self._device = CudaDevice(flavor) if device is None else device
        self._device.activate()
        if plugin_library is not None:
            api.load_plugin_library(plugin_library)
        self._log = create_build_log(api)
        # TensorRT objects must outlive what they made: runtime, engine, context are held in this order.
        self._runtime: Runtime = api.module.Runtime(self._log.logger)
        self._engine = _deserialize(api, self._runtime, engine_path, self._log.cause)
        context = _create_context(api, self._engine)
        if context is None:
            raise VaExportError(f"{api.label} cannot run the engine here: {self._log.cause()}", where=engine_path)
        self._context: Context = context
        self._path = engine_path
        self.shapes = EngineShapes(api, self._engine)
        self._profile = 0
        self._staging: dict[str, DeviceBuffer] = {}
        self._room: dict[str, int] = {}

    def new_cache(self, batch_size: int) -> KvCache:
        """An empty KV cache of the engine's capacity, on the GPU."""
        buffers = {}
        for name in self.shapes.cache_inputs:
            spec = self.shapes.inputs[name]
            shape = tuple(batch_size if axis == 0 else size for axis, size in enumerate(spec.shape))
            buffers[name] = self._device.zeros(shape, spec.dtype)
        return KvCache(buffers)

    def run(
        self,
        inputs: Mapping[str, Array | DeviceBuffer],
        cache: KvCache | None = None,
        keep_on_device: Collection[str] = (),
    ) -> dict[str, Array | DeviceBuffer]:
        """Run once.

        Args:
            inputs: by name; an array is copied to the GPU, a DeviceBuffer is used where it lies.
            cache: for an engine with a KV cache; its new slots are written in place.
            keep_on_device: outputs to return as DeviceBuffer. They hold until this session's next run.

        Returns:
            the outputs by name, without the cache.

        Raises:
            VaExportError: inputs that the engine does not take, or a failure on the GPU.
        """
        outputs = self.bind(inputs, cache)
        with self._device.timed():
            self.enqueue()
        self._device.synchronize()
        return {
            name: buffer if name in keep_on_device else self._device.download(buffer)
            for name, buffer in outputs.items()
        }

    def bind(self, inputs: Mapping[str, Array | DeviceBuffer], cache: KvCache | None = None) -> dict[str, DeviceBuffer]:
        """Give every tensor its shape and memory; arguments and errors as in `run`.

        Returns:
            the outputs by name, without the cache: memory of the session, which `enqueue` writes.
        """
        self._device.activate()
        caches = {} if cache is None else cache.buffers
        given: dict[str, Array | DeviceBuffer] = {**inputs, **caches}
        self.shapes.check_inputs(given)
        self._select_profile(self.shapes.choose_profile({name: value.shape for name, value in given.items()}))
        for name, value in given.items():
            self._bind_input(name, value)
        if unspecified := self._context.infer_shapes():
            raise VaExportError(f"the shapes of {', '.join(unspecified)} are not known", where=self._path)
        outputs = {name: self._bind_output(name, caches) for name in self.shapes.outputs}
        return {name: buffer for name, buffer in outputs.items() if buffer is not None}

    def enqueue(self) -> None:
        """Queue what was bound on the device's stream: no allocation, no copy, no waiting. Bindings stay, so it may be
        called again for new contents of the same memory.

        Raises:
            VaExportError: the engine refused.
        """
        if not self._context.execute_async_v3(self._device.stream):
            raise VaExportError(f"the engine did not run: {self._log.cause()}", where=self._path)

    def receive(self, name: str, buffer: DeviceBuffer, source: CudaDevice) -> DeviceBuffer:
        """An array of another device as the input `name` of this session, to be given to its next run."""
        if source is self._device:
            return buffer
        here = self._stage(name, buffer.shape, buffer.dtype)
        self._device.copy_from(source, buffer, here.address)
        return here

    def close(self) -> None:
        """Free the session's memory, and the device if the session opened it."""
        self._device.activate()
        for buffer in self._staging.values():
            self._device.free(buffer.address)
        self._staging.clear()
        del self._context, self._engine, self._runtime
        if self._owns_device:
            self._device.close()

    def _select_profile(self, profile: int) -> None:
        if profile != self._profile:
            if not self._context.set_optimization_profile_async(profile, self._device.stream):
                raise VaExportError(f"profile {profile} cannot be used: {self._log.cause()}", where=self._path)
            self._device.synchronize()
            self._profile = profile

    def _bind_input(self, name: str, value: Array | DeviceBuffer) -> None:
        if isinstance(value, DeviceBuffer):
            buffer = value
        else:
            array = np.ascontiguousarray(value).reshape(value.shape)
            buffer = self._stage(name, array.shape, array.dtype)
            self._device.upload(array, buffer.address)
        accepted = self._context.set_input_shape(name, buffer.shape)
        if not (accepted and self._context.set_tensor_address(name, buffer.address)):
            raise VaExportError(f"the input was refused: {self._log.cause()}", where=name)

    def _bind_output(self, name: str, caches: Mapping[str, DeviceBuffer]) -> DeviceBuffer | None:
        """Give an output its memory: the cache's own for a cache, which then is no result of the run."""
        past = PAST_PREFIX + name.removeprefix(PRESENT_PREFIX)
        is_cache = name.startswith(PRESENT_PREFIX) and past in caches
        buffer = (
            caches[past]
            if is_cache
            else self._stage(name, tuple(self._context.get_tensor_shape(name)), self.shapes.outputs[name].dtype)
        )
        if not self._context.set_tensor_address(name, buffer.address):
            raise VaExportError(f"the output was refused: {self._log.cause()}", where=name)
        return None if is_cache else buffer

    def _stage(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceBuffer:
        """Memory of the session for one tensor, made larger when needed and never smaller."""
        needed = DeviceBuffer(0, shape, dtype)
        if name not in self._staging or self._room[name] < needed.size_bytes:
            if name in self._staging:
                self._device.free(self._staging[name].address)
            needed.address = self._device.allocate(needed.size_bytes)
            self._room[name] = needed.size_bytes
        else:
            needed.address = self._staging[name].address
        self._staging[name] = needed
        return needed


def _create_context(api: TensorRT, engine: Engine) -> Context | None:
    """An execution context. TensorRT-RTX then captures CUDA graphs by itself: it alone knows when its kernels for a
    shape are compiled (`IRuntimeConfig.cuda_graph_strategy`, TensorRT-RTX 1.2). Full TensorRT has no such thing."""
    if api.flavor != "tensorrt-rtx" or not cuda_graphs_wanted():
        return engine.create_execution_context()
    config = engine.create_runtime_config()
    config.cuda_graph_strategy = api.module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    return engine.create_execution_context(config)


def cuda_graphs_wanted() -> bool:
    """False with VA_EXPORT_CUDA_GRAPHS=0 in the environment: to find out whether graphs are to blame for something."""
    return os.environ.get(GRAPHS_VARIABLE, "") != "0"


def _deserialize(api: TensorRT, runtime: Runtime, path: Path, cause: Any) -> Engine:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            engine = runtime.deserialize_cuda_engine(data)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise VaExportError(f"the engine cannot be read: {error}", where=path) from error
    if engine is None:
        raise VaExportError(
            f"{api.label} cannot use this engine here: {cause()}",
            where=path,
            fix="build it with the installed TensorRT, for this GPU",
        )
    return engine
