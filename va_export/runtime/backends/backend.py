"""What a backend does: run a bundle's components. Arrays at its borders are NumPy float32 or int64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from va_export.errors import VaExportError

if TYPE_CHECKING:
    from va_export.bundle.manifest import Manifest

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


# Keys and values by part of the decoder, in the order of its caches, (kv_heads, slots, head_dim) each.
Slots = Mapping[str, Sequence[Array]]


class Backend(Protocol):
    """The components of a bundle, on one runtime. A KV cache is whatever the backend makes of it."""

    name: str
    device: str
    kernels: tuple[str, ...]
    """Which of the library's kernels run on each GPU and why, a line each; empty where none do."""
    has_proven_score: bool
    """Whether the `score` component may be run: on a GPU only kernels that passed the self-test there."""

    @property
    def part_milliseconds(self) -> Mapping[str, float]:
        """What the latest `decode` spent in each shard of the decoder; empty where it is in one piece."""

    def run(self, component: str, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Run a component that keeps no state, arrays by the names that the manifest gives.

        Raises:
            VaExportError: the bundle has it not, or not in this backend's form.
        """

    def cache_capacity(self, needed: int, limit: int) -> int:
        """Slots of a cache that is to hold `needed`, at most `limit`."""

    def prefill_chunk(self, length: int) -> int:
        """Positions that are best given to `decode` at once, at the most, on the way to a row of `length` slots."""

    def new_cache(self, batch: int, capacity: int) -> Any:
        """An empty KV cache of `capacity` slots a row."""

    def cache_row(self, cache: Any, row: int) -> Any:
        """One row of a cache as a cache of its own, in the same memory."""

    @property
    def keeps_slots(self) -> bool:
        """Whether `read_slots` and `write_slots` can be asked."""

    def read_slots(self, cache: Any, slots: slice) -> Slots:
        """A copy of some slots of a cache of one row, on the host."""

    def write_slots(self, cache: Any, start: int, slots: Slots) -> None:
        """Put what `read_slots` gave, of the same backend and bundle, into a cache of one row, from `start` on."""

    def decode(
        self,
        inputs_embeds: Float32,
        position_ids: Int64,
        key_log_gain: Float32,
        value_gain: Float32,
        past_length: Int64,
        cache: Any,
    ) -> Float32:
        """Append S positions to the cache; (B, vocab) logits of the last one. position_ids are (axes, B, S), the gains
        (B, capacity), past_length (B,)."""

    @property
    def has_greedy_loop(self) -> bool:
        """Whether `greedy_steps` can be asked; else whoever decodes runs every step."""

    def greedy_steps(self, token: int, past_length: int, position: int, cache: Any) -> Iterator[int]:
        """The tokens that follow `token`, which goes into slot `past_length` and has that position on every axis; each
        the likeliest after the one before, without end and without anchors; −1 where logits are not finite. Nothing
        else may be run before the iterator is done with.
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
    keeps_slots = True
    kernels: tuple[str, ...] = ()
    has_proven_score = True

    def greedy_steps(self, token: int, past_length: int, position: int, cache: Any) -> Iterator[int]:
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
    entry = manifest.component(component)
    engine = entry.engines.get(kind)
    name = {"onnx": entry.onnx, "onnx_native": entry.onnx_native}.get(kind, engine.file if engine else None)
    if name is None:
        raise VaExportError(
            f"this bundle has no {kind} form of {component}",
            where=manifest.directory,
            fix="use --backend onnxruntime, or export the bundle with that form",
        )
    return name


def check_outputs(
    manifest: Manifest, component: str, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
) -> None:
    """Hold what a component gave against what the manifest says of it: a graph of another model runs too.

    Raises:
        VaExportError: an output that is missing, or of another type or shape.
    """
    entry = manifest.component(component)
    sizes: dict[int | str, int] = {}
    for tensor in entry.inputs:
        if tensor.name in inputs:
            sizes |= dict(zip(tensor.shape, inputs[tensor.name].shape, strict=False))
    for tensor in entry.outputs:
        if tensor.name.startswith("present"):  # written in place
            continue
        found = outputs.get(tensor.name)
        shape = tuple(size if isinstance(size, int) else sizes.get(size, size) for size in tensor.shape)
        if (
            found is None
            or (found.dtype.name, found.ndim) != (tensor.dtype, len(shape))
            or any(isinstance(a, int) and a != b for a, b in zip(shape, found.shape, strict=True))
        ):
            given = "nothing" if found is None else f"{found.dtype} of shape {found.shape}"
            raise VaExportError(
                f"the graph of {component} gives {given} as {tensor.name}; the manifest says {tensor.dtype} of shape"
                f" ({', '.join(map(str, shape))})",
                where=manifest.directory,
                fix="verify the bundle with va-check, or export it again",
            )


def has_score_graph(manifest: Manifest, backend: str) -> bool:
    """Whether the bundle holds the score as a graph for a backend."""
    entry = manifest.data.components.get("score")
    return entry is not None and (backend == "onnxruntime" or backend in entry.engines)
