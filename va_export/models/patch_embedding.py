"""Patches → hidden states: a convolution whose stride is its kernel's size is a linear layer."""

from __future__ import annotations

import torch
from torch import nn


class PatchEmbedding(nn.Module):
    """A patch's pixels (P, C·frames·patch²) → (P, hidden)."""

    def __init__(self, patch_values: int, hidden_size: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Linear(patch_values, hidden_size, bias=bias)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self.proj(pixel_values.to(self.proj.weight.dtype))
        return embedded
