"""Frames whose tokens are pooled: what this family knows of its vision tower beyond `VisionShape`."""

from __future__ import annotations

from dataclasses import dataclass

from va_export.models.family import ModelSpec, VisionShape
from va_export.models.llava.config_file import Newline, Pooling


@dataclass(frozen=True)
class PooledShape(VisionShape):
    """A frame of `image_size`² pixels becomes `side`² patches, which are pooled two by two; a learned token, the
    newline, may stand after every row, after every frame or at the end."""

    image_size: int
    patch_size: int
    pooling: Pooling
    newline: Newline

    @property
    def side(self) -> int:
        """Rows, and columns, of patches."""
        return self.image_size // self.patch_size

    @property
    def pooled(self) -> int:
        """Rows, and columns, of tokens: averages drop an odd last one."""
        return self.side // 2 if self.pooling == "average" else -(-self.side // 2)

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of a frame's tokens, newlines in their places; None where they make no grid."""
        if self.newline == "frame":
            return None
        return self.pooled, self.pooled + (self.newline == "grid")

    @property
    def tokens_per_frame(self) -> int:
        """Decoder tokens of a frame."""
        return self.pooled * (self.pooled + (self.newline == "grid")) + (self.newline == "frame")

    @property
    def tokens_after(self) -> int:
        """Decoder tokens after the last frame."""
        return int(self.newline == "one_token")


def pooled(spec: ModelSpec) -> PooledShape:
    """The vision tower of a `ModelSpec` that this family made."""
    assert isinstance(spec.vision, PooledShape)
    return spec.vision
