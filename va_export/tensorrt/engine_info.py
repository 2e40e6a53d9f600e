"""What is asked of a build, and what came of it, as the build's own process and the cache of engines exchange it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from va_export.bundle.tensors import Profiles
from va_export.documents import Form
from va_export.tensorrt.api import Flavor
from va_export.tensorrt.prepare_onnx import Attention, PluginNode
from va_export.tensorrt.profiles import Profile


class BuildRequest(Form, frozen=True):
    """One engine to build.

    Attributes:
        onnx_path: the model; weights may lie in external data files beside it and are mapped, not copied.
        targets: as from `parse_targets`.
        ranges: profile name → symbolic dimension → range, as from a component's `ranges`.
        attention: `plugin` leaves AnchoredAttention to `plugin_library`; `native` needs no plugin.
        capacity: slots of the KV cache, for a model that has one.
    """

    onnx_path: Path
    flavor: Flavor
    targets: tuple[str, ...]
    ranges: Profiles
    attention: Attention = "plugin"
    capacity: int | None = None
    plugin_library: Path | None = None


class EngineInfo(Form, frozen=True):
    """What was built, for the manifest and the report; where it lies, whoever asked for it knows.

    Attributes:
        size_bytes: the engine file's size.
        seconds: wall time of parsing and building.
        layer_counts: number of layers of the parsed network by TensorRT's layer type, before fusion.
        plugin_nodes: the nodes that a plugin computes.
        plugin_records: how often such a plugin stands in the engine file (nodes × profiles in RTX 1.7).
        flavor, version: which TensorRT built it; an engine runs with that version only.
        targets: GPUs that it runs on.
        profiles: the shapes that it takes; empty for a model of static shapes.
        input_shapes: per input its dimensions, symbolic ones by name.
        peak_memory_bytes: of the process that built it, mapped weights included; None where it had no process of its
            own.
    """

    size_bytes: int
    seconds: float
    layer_counts: Mapping[str, int]
    plugin_nodes: tuple[PluginNode, ...]
    plugin_records: int
    flavor: Flavor
    version: str
    targets: tuple[str, ...]
    profiles: tuple[Profile, ...]
    input_shapes: Mapping[str, tuple[int | str, ...]]
    peak_memory_bytes: int | None = None
