"""Rotary position embedding as pure tensor arithmetic, so that `torch.export` can take it.

Hugging Face's dynamic variant decides in Python, from the data, whether to recompute its frequencies. The same numbers
follow from one formula (dynamic NTK scaling; u/bloc97 and u/emozilla, 2023): for a sequence of length n,

    base' = base · (f·L/M − (f − 1))^(d/(d−2)),   L = max(n, M),   inverse frequency i = base'^(−2i/d)

with M = max_position_embeddings, f the factor and d = head_dim. Pulled apart, base'^(−2i/d) is the unscaled frequency
times r^(−2i/(d−2)) with r = 1 + f·max(n − M, 0)/M. That form is used here: r is exactly 1 up to M, so at ordinary
lengths the scaling changes no bit, and the unscaled frequency is a constant that a graph can fold.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from va_export.models.family import DynamicNtkScaling, LongRopeScaling, TextShape


def inverse_frequencies(base: float, width: int, device: torch.device) -> torch.Tensor:
    """base^(−2i/d) for i in [0, d/2), float32 [d/2], rounded as Hugging Face rounds it."""
    return 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float32, device=device) / width)


class DynamicNtkRotaryEmbedding(nn.Module):
    """Cosines and sines for rotary embedding; `factor=None` is the plain, unscaled embedding.

    It has neither parameters nor buffers, and its constants are computed in `forward`: nothing is lost when the model
    is built or traced without storage, on the meta device or with fake tensors.
    """

    def __init__(self, head_dim: int, base: float, max_position_embeddings: int, factor: float | None = None) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.base = base
        self.max_position_embeddings = max_position_embeddings
        self.factor = factor

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Angles of `position_ids` [B, S] → (cos, sin), each [B, S, head_dim], computed in float32, typed as `x`.

        A row's sequence length is taken to be its largest position + 1.
        """
        positions = position_ids.float()  # exact below 2²⁴
        inv_freq = inverse_frequencies(self.base, self.head_dim, position_ids.device)[None]  # [1, d/2]
        if self.factor is not None:
            inv_freq = inv_freq * self._stretch(positions)  # [B, d/2]
        angles = positions[:, :, None] * inv_freq[:, None, :]  # [B, S, d/2]
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)

    def _stretch(self, positions: torch.Tensor) -> torch.Tensor:
        """r^(−2i/(d−2)) for every row, [B, d/2]; see the module's docstring."""
        assert self.factor is not None
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=positions.device)[None]
        exponents = exponents / -(self.head_dim - 2)
        excess = torch.clamp(positions.amax(dim=-1, keepdim=True) + 1.0 - self.max_position_embeddings, min=0.0)
        ratio = 1.0 + excess * (self.factor / self.max_position_embeddings)  # [B, 1]
        return torch.pow(ratio, exponents)


class LongRopeEmbedding(nn.Module):
    """LongRoPE (arXiv 2402.13753) as Phi-3 has it: each frequency is divided by a factor of its own, from one list for
    sequences up to the original length and from another for longer ones; cosines and sines are stretched always.

    Which list holds is decided call by call, from the largest position of a row: where decoding crosses the original
    length, new positions take the long factors and the cached keys stay as they are, as in the original.
    """

    def __init__(self, head_dim: int, base: float, scaling: LongRopeScaling, max_position_embeddings: int) -> None:
        super().__init__()
        self.head_dim, self.base, self.scaling = head_dim, base, scaling
        ratio = max_position_embeddings / scaling.original_max_position_embeddings
        longer = 1 + math.log(ratio) / math.log(scaling.original_max_position_embeddings)
        self.stretch = math.sqrt(longer) if ratio > 1 else 1.0

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Angles of `position_ids` [B, S] → (cos, sin), each [B, S, head_dim], computed in float32, typed as `x`."""
        device, positions = position_ids.device, position_ids.float()  # exact below 2²⁴
        frequencies = 1.0 / inverse_frequencies(self.base, self.head_dim, device)  # base^(2i/d), as the original has it
        short, long = (
            torch.tensor(factors, dtype=torch.float32, device=device)
            for factors in (self.scaling.short_factor, self.scaling.long_factor)
        )
        is_long = positions.amax(dim=-1, keepdim=True) + 1 > self.scaling.original_max_position_embeddings  # [B, 1]
        inv_freq = 1.0 / (torch.where(is_long, long, short) * frequencies)  # [B, d/2]
        angles = positions[:, :, None] * inv_freq[:, None, :]
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * self.stretch).to(x.dtype), (angles.sin() * self.stretch).to(x.dtype)


def replace_rotary_embedding(text_model: nn.Module, text: TextShape) -> None:
    """Give a Hugging Face text model (the module with a `rotary_emb`) the exportable embedding, in place."""
    if not isinstance(getattr(text_model, "rotary_emb", None), nn.Module):
        raise TypeError(f"{type(text_model).__name__} has no rotary_emb to replace")
    scaling, longest = text.rope_scaling, text.max_position_embeddings
    if isinstance(scaling, LongRopeScaling):
        text_model.rotary_emb = LongRopeEmbedding(text.head_dim, text.rope_theta, scaling, longest)
        return
    factor = scaling.factor if isinstance(scaling, DynamicNtkScaling) else None
    text_model.rotary_emb = DynamicNtkRotaryEmbedding(text.head_dim, text.rope_theta, longest, factor)
