"""A bundle on ONNX Runtime: the CPU provider everywhere, the CUDA provider where onnxruntime-gpu finds a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from va_export.bundle.decoder_shards import DecoderShard
from va_export.errors import VaExportError
from va_export.runtime.backends.backend import (
    Array,
    Float32,
    HostBackend,
    Int64,
    Slots,
    check_outputs,
    component_file,
)
from va_export.runtime.backends.decoder_parts import PartClock, assign_devices, decoder_parts
from va_export.runtime.backends.external_data import held_graph
from va_export.runtime.backends.session_memory import must_map_weights, prefill_bytes, prefill_chunk, session_options

if TYPE_CHECKING:
    import onnxruntime as ort

    from va_export.bundle.manifest import Manifest

# Read when the library is loaded, which only happens below. Whoever sets it otherwise is heard.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# ONNX element types (onnx.TensorProto.DataType) of the KV cache.
_CACHE_TYPES = {"fp32": 1, "fp16": 10, "bf16": 16}
_CUDA = "CUDAExecutionProvider"


@dataclass(frozen=True)
class _CacheValue:
    """One key or value cache, (B, kv_heads, capacity, head_dim); on the CPU it lies in the memory of `array`."""

    value: ort.OrtValue
    array: np.ndarray | None


# By part of the decoder: its caches in the order of its inputs.
Cache = dict[str, list[_CacheValue]]


class OnnxRuntimeBackend(HostBackend):
    """Sessions are made when a component is first used, so that a bundle of one component opens too."""

    name = "onnxruntime"

    def __init__(self, manifest: Manifest, attention: str, devices: Sequence[int] | None = None) -> None:
        self._manifest = manifest
        self._parts = decoder_parts(manifest)
        self._clock = PartClock(self._parts)
        self._is_native = attention == "native"
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._precision: str = manifest.data.precision
        self._providers = _providers()
        self.device = "cuda" if self._providers[0] == _CUDA else "cpu"
        # Decided once for all components, for they are open together.
        weights = sum(manifest.held.size(name) for name in manifest.data.files if name.endswith(".data"))
        text, length = manifest.data.model.text, manifest.data.limits.opt_input_len
        self._streams = self.device == "cpu" and must_map_weights(weights, prefill_bytes(text.num_heads, length))
        if devices is not None and self.device == "cpu":
            raise VaExportError(
                "ONNX Runtime finds no GPU here to put shards on",
                where="--devices",
                fix="leave --devices out, or install onnxruntime-gpu on a machine with GPUs",
            )
        given = devices or (0,)
        self._first_device = given[0]
        self._device_of = {
            part.name: device for part, device in zip(self._parts, assign_devices(len(self._parts), given), strict=True)
        }
        if self._precision == "bf16" and self.device == "cpu":
            raise VaExportError(
                "ONNX Runtime's CPU provider has no bfloat16 kernels",
                where=manifest.directory,
                fix="use --backend torch here, or run the bundle on a GPU",
            )

    def run(self, component: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        session = self._session(component)
        names = [output.name for output in session.get_outputs()]
        with self._running(component):
            outputs = dict(zip(names, session.run(names, dict(inputs)), strict=True))
        check_outputs(self._manifest, component, inputs, outputs)
        return outputs

    def cache_capacity(self, needed: int, limit: int) -> int:
        # The native form of attention reads the whole cache, so a small one is faster; steps of 64 keep shapes few.
        return min(limit, -(-needed // 64) * 64)

    def prefill_chunk(self, length: int) -> int:
        if self.device != "cpu":
            return length
        return prefill_chunk(self._manifest.data.model.text.num_heads, length, streams=self._streams)

    @property
    def part_milliseconds(self) -> Mapping[str, float]:
        return self._clock.milliseconds

    def new_cache(self, batch: int, capacity: int) -> Cache:
        text = self._manifest.data.model.text
        shape = (batch, text.num_kv_heads, capacity, text.head_dim)
        dtype = {"fp32": np.float32, "fp16": np.float16, "bf16": np.uint16}[self._precision]
        return {
            part.name: [self._cache_value(np.zeros(shape, dtype), part.name) for _ in range(2 * len(part.layers))]
            for part in self._parts
        }

    def _cache_value(self, array: np.ndarray, part: str) -> _CacheValue:
        import onnxruntime as ort

        if self.device == "cpu":  # over the array's own memory
            value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _CACHE_TYPES[self._precision])
            return _CacheValue(value, array)
        return _CacheValue(ort.OrtValue.ortvalue_from_numpy(array, "cuda", self._device_of[part]), None)

    def cache_row(self, cache: Cache, row: int) -> Cache:
        if self.device != "cpu":
            raise VaExportError(
                "ONNX Runtime's CUDA provider answers one prompt at a time here",
                where="answer_batch",
                fix="give prompts one by one, or use a TensorRT backend",
            )
        return {
            part: [self._cache_value(value.array[row : row + 1], part) for value in values if value.array is not None]
            for part, values in cache.items()
        }

    @property
    def keeps_slots(self) -> bool:  # type: ignore[override]
        return self.device == "cpu"

    def read_slots(self, cache: Cache, slots: slice) -> Slots:
        return {part: [_held(value)[0, :, slots].copy() for value in values] for part, values in cache.items()}

    def write_slots(self, cache: Cache, start: int, slots: Slots) -> None:
        for part, values in cache.items():
            for value, kept in zip(values, slots[part], strict=True):
                _held(value)[0, :, start : start + kept.shape[1]] = kept

    def decode(
        self,
        inputs_embeds: Float32,
        position_ids: Int64,
        key_log_gain: Float32,
        value_gain: Float32,
        past_length: Int64,
        cache: Cache,
    ) -> Float32:
        hidden_states = inputs_embeds
        for part in self._parts:
            inputs: dict[str, np.ndarray] = {
                part.input_name: np.ascontiguousarray(hidden_states),
                "position_ids": np.ascontiguousarray(position_ids),
                "key_log_gain": np.ascontiguousarray(key_log_gain),
                "value_gain": np.ascontiguousarray(value_gain),
                "past_length": past_length,
            }
            session = self._session(part.name)
            with self._running(part.name), self._clock(part):
                hidden_states = _run_part(session, part, inputs, cache[part.name])
            check_outputs(self._manifest, part.name, inputs, {part.output_name: hidden_states})
        return hidden_states

    def close(self) -> None:
        self._sessions.clear()

    @contextmanager
    def _running(self, component: str) -> Iterator[None]:
        """Around a run: a graph that opens may still be none that runs."""
        try:
            yield
        except Exception as error:  # ONNX Runtime raises its own bare Exception subclasses
            raise VaExportError(
                f"ONNX Runtime cannot run {component}: {str(error).strip()}",
                where=self._manifest.directory,
                fix="verify the bundle with va-check, or export it again",
            ) from error

    def _session(self, component: str) -> ort.InferenceSession:
        if component not in self._sessions:
            self._sessions[component] = self._open(component)
        return self._sessions[component]

    def _providers_on(self, device: int) -> list[Any]:
        """The providers, CUDA's on one GPU."""
        return [(name, {"device_id": device}) if name == _CUDA else name for name in self._providers]

    def _open(self, component: str) -> ort.InferenceSession:
        import onnxruntime as ort

        entry = self._manifest.component(component)
        # A decoder without its other form is said to lack it; other components may have one form only.
        has_native = entry.role == "decoder" or entry.onnx_native is not None
        kind = "onnx_native" if self._is_native and has_native else "onnx"
        name = component_file(self._manifest, component, kind)
        options = session_options(self._streams)
        with held_graph(self._manifest, name, stay_open=True) as path:
            try:
                return ort.InferenceSession(
                    str(path),
                    options,
                    providers=self._providers_on(self._device_of.get(component, self._first_device)),
                    disabled_optimizers=["ConstantFolding"] if self._streams else None,
                    enable_fallback=0,  # its retry prints to standard output
                )
            except Exception as error:  # ONNX Runtime raises its own bare Exception subclasses
                words = str(error).strip().replace(str(path), name)
                raise VaExportError(
                    f"ONNX Runtime cannot open {component}: {words}",
                    where=self._manifest.path(name),
                    fix="verify the bundle with va-check, or export it again",
                ) from error


def _held(value: _CacheValue) -> Array:
    assert value.array is not None  # on the CPU
    return value.array


def _providers() -> list[str]:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise VaExportError(
            "ONNX Runtime is not installed",
            where="backend onnxruntime",
            fix="pip install onnxruntime (or onnxruntime-gpu)",
        ) from error
    available = ort.get_available_providers()
    cuda = [name for name in (_CUDA,) if name in available]
    return [*cuda, "CPUExecutionProvider"]


def _run_part(
    session: ort.InferenceSession, part: DecoderShard, inputs: Mapping[str, np.ndarray], cache: Sequence[_CacheValue]
) -> Float32:
    """Run one part of the decoder; its first output. Hidden states pass through the host, on whatever device the next
    part is."""
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_cpu_input(name, value)
    names = [value.name for value in session.get_inputs() if value.name not in inputs]
    for name, caches in zip(names, cache, strict=True):
        binding.bind_ortvalue_input(name, caches.value)
        # The written cache goes where the old one lies, so that TensorScatter writes the new slots alone.
        binding.bind_ortvalue_output(name.replace("past_key_values", "present"), caches.value)
    binding.bind_output(part.output_name, "cpu")
    session.run_with_iobinding(binding)
    output: Float32 = binding.get_outputs()[-1].numpy()
    return output
