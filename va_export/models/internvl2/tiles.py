"""One square tile a frame: what this family knows of its vision tower beyond `VisionShape`."""

from __future__ import annotations

from dataclasses import dataclass

from va_export.models.family import ModelSpec, VisionShape


@dataclass(frozen=True)
class TileShape(VisionShape):
    """A frame of `image_size`² pixels is cut into patches and becomes `tokens_per_frame` decoder tokens."""

    image_size: int
    patch_size: int
    tokens_per_frame: int


def tiles(spec: ModelSpec) -> TileShape:
    """The vision tower of a `ModelSpec` that this family made."""
    assert isinstance(spec.vision, TileShape)
    return spec.vision
