"""What this family knows of its vision tower beyond `PatchShape`: most of its blocks attend within windows."""

from __future__ import annotations

from dataclasses import dataclass

from va_export.models.family import ModelSpec
from va_export.models.patch_shape import PatchShape


@dataclass(frozen=True)
class WindowedShape(PatchShape):
    """A tower with window attention.

    Attributes:
        window_size: pixels of a window's side.
        full_blocks: the blocks whose attention is over a whole grid, not over windows.
    """

    window_size: int
    full_blocks: tuple[int, ...]

    @property
    def window_patches(self) -> int:
        """Patches of a whole window."""
        return (self.window_size // self.patch_size) ** 2


def windowed(spec: ModelSpec) -> WindowedShape:
    """The vision tower of a `ModelSpec` that this family made."""
    assert isinstance(spec.vision, WindowedShape)
    return spec.vision
