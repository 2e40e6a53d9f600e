"""What a backend does: run a bundle's components. Arrays at its borders are NumPy float32 or int64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from va_export.errors import VaExportError

if TYPE_CHECKING:
    from va_export.bundle.manifest import Manifest

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


class Backend(Protocol):
    """The components of a bundle, on one runtime. A KV cache is whatever the backend makes of it."""

    name: str
    device: str

    @property
    def part_milliseconds(self) -> Mapping[str, float]:
        """What the latest `decode` spent in each shard of the decoder; empty where it is in one piece."""

    def vision(self, pixel_values: Float32) -> Float32:
        """(frames, 3, S, S) → visual tokens (frames · tokens_per_frame, D)."""

    def embed(self, input_ids: Int64, is_visual: Bool, visual_tokens: Float32) -> Float32:
        """Ids (B, S), image placeholders (B, S) and visual tokens (N ≥ 1, D) → input embeddings (B, S, D)."""

    def score(self, visual_tokens: Float32) -> tuple[Float32, Int64]:
        """Visual tokens (N, D) → sharing score (N,) and labels (N,), by the bundle's `score` component.

        Raises:
            VaExportError: the bundle has none in this backend's form.
        """

    def cache_capacity(self, needed: int, limit: int) -> int:
        """Slots of a cache that is to hold `needed`, at most `limit`."""

    def new_cache(self, batch: int, capacity: int) -> Any:
        """An empty KV cache of `capacity` slots a row."""

    def decode(
        self,
        inputs_embeds: Float32,
        key_log_gain: Float32,
        value_gain: Float32,
        past_length: Int64,
        cache: Any,
    ) -> Float32:
        """Append S positions to the cache; (B, vocab) logits of the last one. The gains are (B, capacity)."""

    @property
    def has_greedy_loop(self) -> bool:
        """Whether `greedy_steps` can be asked; else whoever decodes calls `embed` and `decode` for every token."""

    def greedy_steps(self, token: int, past_length: int, cache: Any) -> Iterator[int]:
        """The tokens that follow `token` at position `past_length`, each the likeliest after the one before, without
        end and without anchors; −1 where logits are not finite. Nothing else may be run before the iterator is done
        with.
        """

    def take_gpu_milliseconds(self) -> float | None:
        """GPU time of everything since the last call, by events; None where there is no GPU or it does not tell."""

    def device_memory_bytes(self) -> int | None:
        """Memory in use on the GPUs now; None without one."""

    def close(self) -> None:
        """Free what the backend holds."""


class HostBackend:
    """What a backend answers that knows nothing of GPUs' clocks and loops."""

    has_greedy_loop = False

    def greedy_steps(self, token: int, past_length: int, cache: Any) -> Iterator[int]:
        raise NotImplementedError(f"{type(self).__name__} has no loop of its own")

    def take_gpu_milliseconds(self) -> float | None:
        return None

    def device_memory_bytes(self) -> int | None:
        return None


def component_file(manifest: Manifest, component: str, kind: str) -> str:
    """The name of a component's file (`onnx`, `onnx_native` or an engine's flavour) in the manifest.

    Raises:
        VaExportError: the bundle was exported without it.
    """
    entry = manifest.data["components"].get(component)
    if entry is None:
        raise VaExportError(
            f"this bundle has no {component}: it was exported with --components"
            f" {','.join(manifest.data['components'])}",
            where=manifest.directory,
            fix="export all components to run the whole model",
        )
    name = entry.get(kind) if kind.startswith("onnx") else entry.get("engines", {}).get(kind, {}).get("file")
    if name is None:
        raise VaExportError(
            f"this bundle has no {kind} form of {component}",
            where=manifest.directory,
            fix="use --backend onnxruntime, or export the bundle with that form",
        )
    return str(name)


def has_score_graph(manifest: Manifest, backend: str) -> bool:
    """Whether the bundle holds the score as a graph for a backend; bundles of older versions hold none."""
    entry = manifest.data["components"].get("score", {})
    return "onnx" in entry if backend == "onnxruntime" else backend in entry.get("engines", {})
