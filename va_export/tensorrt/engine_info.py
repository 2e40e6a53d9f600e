"""What is asked of a build, and what came of it; both have a JSON form, for the build's own process and the cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import msgspec

from va_export.bundle.tensors import DimensionRange
from va_export.tensorrt.api import Flavor
from va_export.tensorrt.prepare_onnx import Attention, PluginNode
from va_export.tensorrt.profiles import Profile, ShapeRange


@dataclass(frozen=True)
class BuildRequest:
    """One engine to build; the fields are those of `build_engine`."""

    onnx_path: Path
    flavor: Flavor
    targets: tuple[str, ...]
    ranges: Mapping[str, Mapping[str, DimensionRange]]
    attention: Attention = "plugin"
    capacity: int | None = None
    plugin_library: Path | None = None

    def to_mapping(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            **asdict(self),
            "ranges": msgspec.to_builtins(self.ranges),
            "onnx_path": str(self.onnx_path),
            "targets": list(self.targets),
            "plugin_library": None if self.plugin_library is None else str(self.plugin_library),
        }

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> BuildRequest:
        """From the JSON form."""
        library = data["plugin_library"]
        ranges = {
            profile: {dimension: DimensionRange(**sizes) for dimension, sizes in dimensions.items()}
            for profile, dimensions in data["ranges"].items()
        }
        return cls(
            onnx_path=Path(data["onnx_path"]),
            flavor=cast(Flavor, data["flavor"]),
            targets=tuple(data["targets"]),
            ranges=ranges,
            attention=cast(Attention, data["attention"]),
            capacity=data["capacity"],
            plugin_library=None if library is None else Path(library),
        )


@dataclass(frozen=True)
class EngineInfo:
    """What was built, for the manifest and the report.

    Attributes:
        path: the engine file.
        size_bytes: its size.
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

    path: Path
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

    def to_mapping(self) -> dict[str, Any]:
        """The JSON form, without the path: whoever holds the file knows it."""
        data = asdict(self)
        del data["path"]
        return data

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any], path: Path) -> EngineInfo:
        """From the JSON form, for an engine that lies at `path`.

        Raises:
            KeyError, TypeError, ValueError: it is another form.
        """
        fixed = {
            "path": path,
            "plugin_nodes": tuple(PluginNode(**node) for node in data["plugin_nodes"]),
            "targets": tuple(data["targets"]),
            "profiles": tuple(
                Profile(
                    profile["name"],
                    {
                        name: ShapeRange(**{bound: tuple(shape) for bound, shape in bounds.items()})
                        for name, bounds in profile["ranges"].items()
                    },
                )
                for profile in data["profiles"]
            ),
            "input_shapes": {name: tuple(shape) for name, shape in data["input_shapes"].items()},
        }
        return cls(**{**data, **fixed})
