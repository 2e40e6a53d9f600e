"""A bundle on ONNX Runtime: the CPU provider everywhere, the CUDA provider where onnxruntime-gpu finds a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from va_export.errors import VaExportError
from va_export.runtime.backend import Bool, Float32, Int64, component_file
from va_export.runtime.external_data import check_external_data

if TYPE_CHECKING:
    import onnxruntime as ort

    from va_export.bundle.manifest import Manifest

# ONNX element types (onnx.TensorProto.DataType) of the KV cache.
_CACHE_TYPES = {"fp32": 1, "fp16": 10, "bf16": 16}


class OnnxRuntimeBackend:
    """Sessions are made when a component is first used, so that a bundle of one component opens too."""

    name = "onnxruntime"

    def __init__(self, manifest: Manifest, attention: str) -> None:
        self._manifest = manifest
        self._decoder_kind = "onnx_native" if attention == "native" else "onnx"
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._precision: str = manifest.data["precision"]
        self._providers = _providers()
        self.device = "cuda" if self._providers[0].startswith("CUDA") else "cpu"
        if self._precision == "bf16" and self.device == "cpu":
            raise VaExportError(
                "ONNX Runtime's CPU provider has no bfloat16 kernels",
                where=manifest.directory,
                fix="use --backend torch here, or run the bundle on a GPU",
            )

    def vision(self, pixel_values: Float32) -> Float32:
        return self._run("vision", {"pixel_values": pixel_values})

    def embed(self, input_ids: Int64, is_visual: Bool, visual_tokens: Float32) -> Float32:
        inputs: dict[str, np.ndarray] = {"input_ids": input_ids, "is_visual": is_visual, "visual_tokens": visual_tokens}
        return self._run("embedding", inputs)

    def score(self, visual_tokens: Float32) -> tuple[Float32, Int64]:
        score, labels = self._session("score").run(None, {"visual_tokens": visual_tokens})
        return score, labels

    def cache_capacity(self, needed: int, limit: int) -> int:
        # The portable attention reads the whole cache, so a small one is faster; steps of 64 keep the shapes few.
        return min(limit, -(-needed // 64) * 64)

    def new_cache(self, batch: int, capacity: int) -> list[ort.OrtValue]:
        import onnxruntime as ort

        text = self._manifest.data["model"]["text"]
        shape = (batch, text["num_kv_heads"], capacity, text["head_dim"])
        dtype = {"fp32": np.float32, "fp16": np.float16, "bf16": np.uint16}[self._precision]
        return [
            ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.zeros(shape, dtype), _CACHE_TYPES[self._precision])
            if self.device == "cpu"
            else ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype), "cuda", 0)
            for _ in range(2 * text["num_layers"])
        ]

    def decode(
        self,
        inputs_embeds: Float32,
        key_log_gain: Float32,
        value_gain: Float32,
        past_length: Int64,
        cache: list[ort.OrtValue],
    ) -> Float32:
        session = self._session("decoder")
        binding = session.io_binding()
        binding.bind_cpu_input("inputs_embeds", np.ascontiguousarray(inputs_embeds))
        binding.bind_cpu_input("key_log_gain", np.ascontiguousarray(key_log_gain))
        binding.bind_cpu_input("value_gain", np.ascontiguousarray(value_gain))
        binding.bind_cpu_input("past_length", past_length)
        names = [value.name for value in session.get_inputs()][4:]
        for name, value in zip(names, cache, strict=True):
            binding.bind_ortvalue_input(name, value)
            # The written cache goes where the old one lies, so that TensorScatter writes the new slots alone.
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
        binding.bind_output("logits", "cpu")
        session.run_with_iobinding(binding)
        logits: Float32 = binding.get_outputs()[-1].numpy()
        return logits

    def close(self) -> None:
        self._sessions.clear()

    def _run(self, component: str, inputs: dict[str, np.ndarray]) -> Float32:
        result: Float32 = self._session(component).run(None, inputs)[0]
        return result

    def _session(self, component: str) -> ort.InferenceSession:
        if component not in self._sessions:
            self._sessions[component] = self._open(component)
        return self._sessions[component]

    def _open(self, component: str) -> ort.InferenceSession:
        import onnxruntime as ort

        kind = self._decoder_kind if component == "decoder" else "onnx"
        path = self._manifest.path(component_file(self._manifest, component, kind))
        check_external_data(path)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        try:
            return ort.InferenceSession(str(path), options, providers=self._providers)
        except Exception as error:  # ONNX Runtime raises its own bare Exception subclasses
            raise VaExportError(
                f"ONNX Runtime cannot open {component}: {str(error).strip()}",
                where=path,
                fix="verify the bundle with va-check, or export it again",
            ) from error


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
    cuda = [name for name in ("CUDAExecutionProvider",) if name in available]
    return [*cuda, "CPUExecutionProvider"]
