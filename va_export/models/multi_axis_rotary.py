"""Rotary position embeddings over several axes, without buffers, which are lost where a model is made without storage.

All compute what Hugging Face's modules of the same place compute, from constants that `forward` makes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from va_export.models.rotary_embedding import inverse_frequencies


class MultiAxisRotaryEmbedding(nn.Module):
    """M-RoPE: the frequencies are dealt out to time, row and column, `section` of them each.

    Args:
        section: frequencies of each axis in turn; head_dim / 2 in all.
    """

    def __init__(self, head_dim: int, base: float, section: Sequence[int]) -> None:
        super().__init__()
        self.head_dim, self.base, self.section = head_dim, base, tuple(section)

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions [3, B, S] → (cos, sin), each [B, S, head_dim], computed in float32, typed as `x`."""
        frequencies = inverse_frequencies(self.base, self.head_dim, position_ids.device)
        parts, first = [], 0
        for axis, count in enumerate(self.section):
            own = frequencies[first : first + count]
            parts.append(position_ids[axis].float()[..., None] * own)  # [B, S, count]
            first += count
        half = torch.cat(parts, dim=-1)
        angles = torch.cat((half, half), dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


class InterleavedRotaryEmbedding(nn.Module):
    """M-RoPE whose axes take turns: frequency i is row's where i mod 3 is 1, column's where it is 2, as far as an axis
    has frequencies, and time's else.

    Args:
        section: as `MultiAxisRotaryEmbedding`'s; time has no fewer than the others.
    """

    def __init__(self, head_dim: int, base: float, section: Sequence[int]) -> None:
        super().__init__()
        self.head_dim, self.base = head_dim, base
        self.axis = [0] * (head_dim // 2)
        for axis, count in enumerate(section):
            self.axis[axis : 3 * count : 3] = [axis] * len(self.axis[axis : 3 * count : 3])

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions [3, B, S] → (cos, sin), each [B, S, head_dim], computed in float32, typed as `x`."""
        frequencies = inverse_frequencies(self.base, self.head_dim, position_ids.device)
        axis = torch.tensor(self.axis, device=position_ids.device)
        half = position_ids.float()[axis].movedim(0, -1) * frequencies  # [B, S, head_dim / 2]
        angles = torch.cat((half, half), dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


class PlaneRotaryEmbedding(nn.Module):
    """Rows turn the first quarter of a head and the third, columns the second and the fourth."""

    def __init__(self, head_dim: int, base: float = 10000.0) -> None:
        super().__init__()
        self.head_dim, self.base = head_dim, base

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and columns [P, 2] → (cos, sin), each [P, head_dim] float32."""
        frequencies = inverse_frequencies(self.base, self.head_dim // 2, position_ids.device)
        half = (position_ids.float()[..., None] * frequencies).flatten(-2)  # [P, head_dim / 2]
        angles = torch.cat((half, half), dim=-1)
        return angles.cos(), angles.sin()
