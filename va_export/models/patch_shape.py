"""Towers whose pictures keep their sizes: as many patches as each asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from va_export.models.family import ModelSpec, VisionShape


@dataclass(frozen=True)
class PatchShape(VisionShape):
    """A grid of `frames_per_grid` frames is cut into patches, of which merge_size² become one decoder token.

    Attributes:
        video_pixels, image_pixels: of a picture after it is resized, at the most.
    """

    keeps_sizes: ClassVar[bool] = True

    patch_size: int
    merge_size: int
    frames_per_grid: int
    video_pixels: int
    image_pixels: int

    @property
    def patch_values(self) -> int:
        """Numbers that one patch has."""
        return 3 * self.frames_per_grid * self.patch_size**2

    def grids(self, n_frames: int) -> int:
        """Grids of so many frames."""
        return -(-n_frames // self.frames_per_grid)

    def tokens(self, pixels: int) -> int:
        """Decoder tokens of a grid of so many pixels, at the most."""
        return max(1, pixels // (self.patch_size * self.merge_size) ** 2)

    def visual_tokens(self, n_frames: int) -> int:
        """Decoder tokens of so many frames, or of one image, at the most."""
        return max(self.grids(n_frames) * self.tokens(self.video_pixels), self.tokens(self.image_pixels))


def patches(spec: ModelSpec) -> PatchShape:
    """The vision tower of a `ModelSpec` whose family has such a tower."""
    assert isinstance(spec.vision, PatchShape)
    return spec.vision
