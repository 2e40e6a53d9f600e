"""A bundle on TensorRT or TensorRT-RTX: its engines on one GPU, the KV cache staying there."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from va_export.engine.cuda_device import CudaDevice
from va_export.engine.tensorrt_api import Flavor
from va_export.runtime.backend import Bool, Float32, Int64, component_file, has_score_graph
from va_export.runtime.tensorrt_session import KvCache, TensorRTSession

if TYPE_CHECKING:
    from va_export.bundle.manifest import Manifest


class TensorRTBackend:
    """Opens all engines at once, on one device, so that what is missing shows at the start."""

    device = "cuda"

    def __init__(self, manifest: Manifest, flavor: str) -> None:
        self.name = flavor
        self._manifest = manifest
        self._capacity: int = manifest.data["limits"]["max_kv_cache_capacity"]
        plugin = manifest.data.get("plugin")
        library = manifest.path(plugin["library"]) if plugin and manifest.data["attention"] == "plugin" else None
        files = {
            name: manifest.path(component_file(manifest, name, flavor)) for name in ("vision", "embedding", "decoder")
        }
        if has_score_graph(manifest, flavor):
            files["score"] = manifest.path(component_file(manifest, "score", flavor))
        self._device = CudaDevice(cast(Flavor, flavor))
        self._sessions = {
            name: TensorRTSession(
                path, cast(Flavor, flavor), library if name in ("decoder", "score") else None, self._device
            )
            for name, path in files.items()
        }

    def vision(self, pixel_values: Float32) -> Float32:
        return self._array("vision", {"pixel_values": pixel_values}, "visual_tokens")

    def embed(self, input_ids: Int64, is_visual: Bool, visual_tokens: Float32) -> Float32:
        inputs: dict[str, np.ndarray] = {"input_ids": input_ids, "is_visual": is_visual, "visual_tokens": visual_tokens}
        return self._array("embedding", inputs, "inputs_embeds")

    def score(self, visual_tokens: Float32) -> tuple[Float32, Int64]:
        if "score" not in self._sessions:
            component_file(self._manifest, "score", self.name)  # says what is missing
        outputs = self._sessions["score"].run({"visual_tokens": np.ascontiguousarray(visual_tokens)})
        score, labels = outputs["sharing_score"], outputs["labels"]
        assert isinstance(score, np.ndarray) and isinstance(labels, np.ndarray)
        return score.astype(np.float32, copy=False), labels.astype(np.int64, copy=False)

    def cache_capacity(self, needed: int, limit: int) -> int:
        return self._capacity  # fixed when the engine was built

    def new_cache(self, batch: int, capacity: int) -> KvCache:
        return self._sessions["decoder"].new_cache(batch)

    def decode(
        self, inputs_embeds: Float32, key_log_gain: Float32, value_gain: Float32, past_length: Int64, cache: KvCache
    ) -> Float32:
        inputs: dict[str, np.ndarray] = {
            "inputs_embeds": inputs_embeds,
            "key_log_gain": key_log_gain,
            "value_gain": value_gain,
            "past_length": past_length,
        }
        return self._array("decoder", inputs, "logits", cache)

    def close(self) -> None:
        for session in self._sessions.values():
            session.close()
        self._device.close()

    def _array(
        self, component: str, inputs: dict[str, np.ndarray], output: str, cache: KvCache | None = None
    ) -> Float32:
        contiguous = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        result = self._sessions[component].run(contiguous, cache)[output]
        assert isinstance(result, np.ndarray)  # nothing was asked to stay on the device
        return result.astype(np.float32, copy=False)
