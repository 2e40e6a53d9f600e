"""Attention of patches within groups of different sizes, windows or grids, by our own op.

Each group is a row of a batch with a length of its own, which AnchoredAttention takes as it takes a KV cache that is
not full: no mask is made, and the kernel is the decoder's. Patches stay in the order in which they come; the host says
where each goes, by rows (R, L), lengths (R,) and slots (N, 4) as `runtime.processing.patches.ragged_rows` makes them.
"""

from __future__ import annotations

from typing import Any

import torch

from va_export.ops import anchored_attention

Ragged = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def attend_within(
    attention: Any, hidden_states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, within: Ragged
) -> torch.Tensor:
    """Attention of every patch (P, C) to those of its group.

    Args:
        attention: Hugging Face's module, queries, keys and values packed in `qkv`.
        cos, sin: (P, 1, head_dim).
        within: rows, lengths and flattened slots.
    """
    rows, lengths, slots = within
    heads = attention.num_heads
    packed = attention.qkv(hidden_states)
    width = packed.shape[1] // 3
    query, key, value = (
        packed[:, part * width : (part + 1) * width].reshape(-1, heads, width // heads) for part in range(3)
    )
    zero_gain = torch.zeros_like(rows, dtype=torch.float32)
    op = anchored_attention.torch_op()
    output: torch.Tensor = op(  # type: ignore[assignment]
        _spread(_turn(query, cos, sin), rows),
        _spread(_turn(key, cos, sin), rows),
        _spread(value, rows),
        zero_gain,
        torch.ones_like(zero_gain),
        lengths,
        attention.scaling,
        False,
    )  # (R, heads, L, head_dim)
    attended: torch.Tensor = attention.proj(output.transpose(1, 2).flatten(0, 1).flatten(1)[slots])
    return attended


def pictures_of(patch_positions: torch.Tensor, grid_lengths: torch.Tensor) -> torch.Tensor:
    """The grids (n, 3) of Hugging Face's own forward, each step of time a picture of its own: towers attend within one
    step everywhere."""
    sides, first = [], 0
    positions = patch_positions.flatten(0, 1)
    for length in grid_lengths.tolist():
        rows, columns = (positions[first : first + length].amax(0) + 1).tolist()
        sides.append((1, rows, columns))
        first += length
    return torch.tensor(sides)


def _spread(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """(P, heads, head_dim) → (R, heads, L, head_dim)."""
    return values[rows.flatten()].reshape(*rows.shape, *values.shape[1:]).transpose(1, 2)


def _turn(values: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of (P, heads, head_dim) in float32."""
    precise = values.to(torch.float32)
    first, second = precise.chunk(2, dim=-1)
    return (precise * cos + torch.cat((-second, first), dim=-1) * sin).to(values.dtype)
