"""A bundle on TensorRT or TensorRT-RTX: its engines on one GPU or several, the KV cache staying there."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np

from va_export.native import load_library
from va_export.native.greedy_step import bind as bind_greedy_step
from va_export.native.selftest.documents import AttentionShape
from va_export.native.selftest.prove import ProvenKernels, take_proven_kernels
from va_export.runtime.backends.backend import Array, Float32, Int64, Slots, component_file, has_score_graph
from va_export.runtime.backends.decoder_parts import (
    PartClock,
    assign_devices,
    decoder_parts,
    embedding_width,
    position_axes,
)
from va_export.runtime.backends.tensorrt_decode_loop import DecodeLoop
from va_export.runtime.backends.tensorrt_session import KvCache, TensorRTSession, cuda_graphs_wanted
from va_export.tensorrt.api import Flavor
from va_export.tensorrt.cuda_device import CudaDevice, DeviceBuffer, require_gpu

if TYPE_CHECKING:
    from pathlib import Path

    from va_export.bundle.manifest import Manifest
    from va_export.bundle.trust import AdmittedCode

_DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


def _prove_kernels(library: Path, device: int, manifest: Manifest) -> ProvenKernels:
    """Before anything is on the GPU: the self-test's process wants memory, and maybe the GPU for itself."""
    require_gpu(device)
    text, limits = manifest.data.model.text, manifest.data.limits
    shape = AttentionShape(
        dtype=_DTYPES[manifest.data.precision],
        query_heads=text.num_heads,
        kv_heads=text.num_kv_heads,
        head_dim=text.head_dim,
        value_head_dim=text.head_dim,
        capacity=limits.max_kv_cache_capacity,
        tuned_length=limits.opt_input_len,
    )
    return take_proven_kernels(library, device, shape)


class TensorRTBackend:
    """Opens all engines at once, so that what is missing shows at the start.

    Args:
        code: what of the bundle may be executed, from `admit_code`.
        devices: GPUs for the decoder's shards, in order; vision and embedding go to the first. None: GPU 0.
    """

    def __init__(
        self, manifest: Manifest, flavor: str, code: AdmittedCode, devices: Sequence[int] | None = None
    ) -> None:
        self.name = flavor
        self._manifest = manifest
        self._capacity: int = manifest.data.limits.max_kv_cache_capacity
        self._library = library = code.library
        self._parts = decoder_parts(manifest)
        self._clock = PartClock(self._parts)
        given = tuple(devices) if devices else (0,)
        places = dict.fromkeys(("vision", "embedding"), given[0])
        names = [part.name for part in self._parts]
        places |= dict(zip(names, assign_devices(len(names), given), strict=True))
        if has_score_graph(manifest, flavor):
            places["score"] = given[0]
        files = {name: code.engine(component_file(manifest, name, flavor)) for name in places}
        self.device = "cuda" if len(given) == 1 else f"cuda:{','.join(map(str, given))}"
        proven = [] if library is None else [_prove_kernels(library, index, manifest) for index in given]
        self.kernels = tuple(kernels.line for kernels in proven)
        self.has_proven_score = all(kernels.score_passed for kernels in proven)
        self._devices = {index: CudaDevice(cast(Flavor, flavor), index) for index in given}
        self._device_of = {name: self._devices[index] for name, index in places.items()}
        self._sessions = {
            name: TensorRTSession(
                path,
                cast(Flavor, flavor),
                library if self._has_custom_op(name) else None,
                self._device_of[name],
            )
            for name, path in files.items()
        }
        code.check_unchanged()
        self._cache: dict[str, KvCache] | None = None
        self._cache_batch = 0
        self._loop: DecodeLoop | None = None

    def _has_custom_op(self, component: str) -> bool:
        entry = self._manifest.component(component)
        return entry.onnx_native is not None or entry.role == "score"

    @property
    def part_milliseconds(self) -> Mapping[str, float]:
        return self._clock.milliseconds

    def run(self, component: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if component not in self._sessions:
            component_file(self._manifest, component, self.name)  # says what is missing
        outputs = self._sessions[component].run({name: np.ascontiguousarray(value) for name, value in inputs.items()})
        types = {tensor.name: np.dtype(tensor.dtype) for tensor in self._manifest.component(component).outputs}
        # TensorRT may have narrowed what is computed, as int64 to int32.
        return {name: np.asarray(value).astype(types[name], copy=False) for name, value in outputs.items()}

    def cache_capacity(self, needed: int, limit: int) -> int:
        return self._capacity  # fixed when the engine was built

    def prefill_chunk(self, length: int) -> int:
        return self._manifest.data.limits.max_input_len  # engines hold room for so much, whether it is used or not

    def new_cache(self, batch: int, capacity: int) -> dict[str, KvCache]:
        """The caches of the one sequence (or batch) that this backend works on: those given out before are taken back,
        so that a question after another needs no more memory."""
        if self._cache is not None and self._cache_batch == batch:
            for name, cache in self._cache.items():
                for buffer in cache.buffers.values():
                    self._device_of[name].clear(buffer)
            return self._cache
        self._drop_cache()
        self._cache = {part.name: self._sessions[part.name].new_cache(batch) for part in self._parts}
        self._cache_batch = batch
        return self._cache

    def cache_row(self, cache: dict[str, KvCache], row: int) -> dict[str, KvCache]:
        return {part: values.row(row) for part, values in cache.items()}

    keeps_slots = True

    def read_slots(self, cache: dict[str, KvCache], slots: slice) -> Slots:
        return {
            part: [
                np.stack([self._device_of[part].download(head) for head in buffer.rows_of(slots)])
                for buffer in values.buffers.values()
            ]
            for part, values in cache.items()
        }

    def write_slots(self, cache: dict[str, KvCache], start: int, slots: Slots) -> None:
        for part, values in cache.items():
            for buffer, kept in zip(values.buffers.values(), slots[part], strict=True):
                for head, array in zip(buffer.rows_of(slice(start, start + kept.shape[1])), kept, strict=True):
                    self._device_of[part].upload(np.ascontiguousarray(array), head.address)

    @cached_property
    def _greedy_library(self) -> ctypes.CDLL | None:
        """The plugin library, which has the loop's own kernel; None without one, or with one that is older."""
        return None if self._library is None else bind_greedy_step(load_library(self._library))

    @property
    def has_greedy_loop(self) -> bool:
        return len(self._devices) == 1 and self._greedy_library is not None  # a graph is of one device

    def greedy_steps(self, token: int, past_length: int, position: int, cache: dict[str, KvCache]) -> Iterator[int]:
        assert self._greedy_library is not None
        if self._loop is None:
            device = next(iter(self._devices.values()))
            self._loop = DecodeLoop(
                device,
                self._sessions["embedding"],
                [(part, self._sessions[part.name], cache[part.name]) for part in self._parts],
                embedding_width(self._manifest),
                position_axes(self._manifest),
                self._capacity,
                self._greedy_library,
                captures=self.name == "tensorrt" and cuda_graphs_wanted(),
            )
        return self._loop.steps(token, past_length, position)

    def take_gpu_milliseconds(self) -> float | None:
        spent = sum(device.gpu_milliseconds for device in self._devices.values())
        for device in self._devices.values():
            device.gpu_milliseconds = 0.0
        return spent

    def device_memory_bytes(self) -> int | None:
        return sum(device.memory_in_use() for device in self._devices.values())

    def decode(
        self,
        inputs_embeds: Float32,
        position_ids: Int64,
        key_log_gain: Float32,
        value_gain: Float32,
        past_length: Int64,
        cache: dict[str, KvCache],
    ) -> Float32:
        common: dict[str, np.ndarray] = {
            "position_ids": np.ascontiguousarray(position_ids),
            "key_log_gain": np.ascontiguousarray(key_log_gain),
            "value_gain": np.ascontiguousarray(value_gain),
            "past_length": np.ascontiguousarray(past_length),
        }
        hidden_states: np.ndarray | DeviceBuffer = np.ascontiguousarray(inputs_embeds)
        place: CudaDevice | None = None  # the host
        for part in self._parts:
            session = self._sessions[part.name]
            with self._clock(part):
                if place is not None:
                    assert isinstance(hidden_states, DeviceBuffer)
                    hidden_states = session.receive(part.input_name, hidden_states, place)
                keep = () if part.is_last else (part.output_name,)
                inputs = {part.input_name: hidden_states, **common}
                hidden_states = session.run(inputs, cache[part.name], keep)[part.output_name]
            place = self._device_of[part.name]
        assert isinstance(hidden_states, np.ndarray)  # the last part's logits were not asked to stay on the device
        return hidden_states.astype(np.float32, copy=False)

    def _drop_cache(self) -> None:
        if self._loop is not None:  # its graph writes into the cache
            self._loop.close()
            self._loop = None
        if self._cache is not None:
            for name, cache in self._cache.items():
                for buffer in cache.buffers.values():
                    self._device_of[name].free(buffer.address)
            self._cache = None

    def close(self) -> None:
        self._drop_cache()
        for session in self._sessions.values():
            session.close()
        for device in self._devices.values():
            device.close()
