"""The tower and its merger as a component: patches → visual tokens.

Most blocks attend within windows, the others within a grid. Both are ragged: a window at the edge of a picture has
fewer patches, and pictures of several sizes have grids of several sizes. Each window, or grid, is a row of a batch with
a length of its own, which AnchoredAttention takes as it takes a KV cache that is not full: no mask is made, and the
kernel is the decoder's. Patches stay in the order in which they come; the host says where each goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from va_export.bundle.tensors import DimensionRange, Profiles, TensorInfo
from va_export.models.component import Component, visual_range
from va_export.models.family import ModelSpec
from va_export.models.qwen2_5_vl.patches import patches
from va_export.ops import anchored_attention
from va_export.settings import Limits

Ragged = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class VisionGraph(torch.nn.Module):
    """See `vision_component` for the inputs; rows (R, L), lengths (R,) and slots (N, 4) as
    `runtime.processing.patches.ragged_rows` makes them."""

    def __init__(self, hf: Any) -> None:
        super().__init__()
        self.hf: Any = hf

    def forward(
        self,
        pixel_values: torch.Tensor,
        patch_positions: torch.Tensor,
        window_rows: torch.Tensor,
        window_lengths: torch.Tensor,
        window_slots: torch.Tensor,
        grid_rows: torch.Tensor,
        grid_lengths: torch.Tensor,
        grid_slots: torch.Tensor,
    ) -> torch.Tensor:
        tower = self.hf.model.visual
        hidden_states = tower.patch_embed(pixel_values.flatten(0, 1))  # (P, C)
        cos, sin = tower.rotary_pos_emb(hidden_states, patch_positions.flatten(0, 1))
        windows = (window_rows, window_lengths, window_slots.flatten())
        grids = (grid_rows, grid_lengths, grid_slots.flatten())
        for number, block in enumerate(tower.blocks):
            within = grids if number in tower.fullatt_block_indexes else windows
            attended = _attend(block.attn, block.norm1(hidden_states), cos[:, None], sin[:, None], within)
            hidden_states = hidden_states + attended
            hidden_states = hidden_states + block.mlp(block.norm2(hidden_states))
        merger = tower.merger
        merged = merger.ln_q(hidden_states).reshape(pixel_values.shape[0], -1)
        tokens: torch.Tensor = merger.mlp(merged).to(torch.float32)
        return tokens


def _attend(
    attention: Any, hidden_states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, within: Ragged
) -> torch.Tensor:
    """Attention of every patch (P, C) to those of its row."""
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


def _spread(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """(P, heads, head_dim) → (R, heads, L, head_dim)."""
    return values[rows.flatten()].reshape(*rows.shape, *values.shape[1:]).transpose(1, 2)


def _turn(values: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of (P, heads, head_dim) in float32."""
    precise = values.to(torch.float32)
    first, second = precise.chunk(2, dim=-1)
    return (precise * cos + torch.cat((-second, first), dim=-1) * sin).to(values.dtype)


def reference_tokens(hf: Any, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The same by Hugging Face's own forward, which makes its windows itself. It attends within one step of time
    everywhere, so each is given as a picture of its own."""
    pixel_values, patch_positions, *_, grid_lengths, _ = inputs
    sides, first = [], 0
    positions = patch_positions.flatten(0, 1)
    for length in grid_lengths.tolist():
        rows, columns = (positions[first : first + length].amax(0) + 1).tolist()
        sides.append((1, rows, columns))
        first += length
    output = hf.model.visual(pixel_values.flatten(0, 1), grid_thw=torch.tensor(sides))
    tokens: torch.Tensor = output.pooler_output.to(torch.float32)
    return tokens


def vision_component(spec: ModelSpec) -> Component:
    """The component of a tower whose pictures keep their sizes. `visual_count` counts decoder tokens; each has
    merge_size² patches."""
    vision = patches(spec)
    unit = vision.merge_size**2

    def ranges(limits: Limits) -> Profiles:
        tokens = visual_range(limits, vision.visual_tokens)
        grids = [vision.grids(frames) for frames in (limits.opt_frames, limits.max_frames)]
        a_window = vision.window_patches // unit
        largest = unit * vision.tokens(max(vision.video_pixels, vision.image_pixels))
        return {
            "patches": {
                "visual_count": tokens,
                # Pictures two tokens high have twice as many windows as square ones; and one for what is left over.
                "windows": DimensionRange(1, tokens.opt // a_window + grids[0], 2 * tokens.max // a_window + grids[1]),
                "grids": DimensionRange(1, *grids),
                "grid_patches": DimensionRange(unit, unit * vision.tokens(vision.video_pixels), largest),
            }
        }

    def ragged(name: str, rows: str, width: int | str) -> tuple[TensorInfo, ...]:
        return (
            TensorInfo(f"{name}_rows", "int64", (rows, width)),
            TensorInfo(f"{name}_lengths", "int64", (rows,)),
            TensorInfo(f"{name}_slots", "int64", ("visual_count", unit)),
        )

    return Component(
        "vision",
        "vision",
        (
            TensorInfo("pixel_values", "float32", ("visual_count", unit, vision.patch_values)),
            TensorInfo("patch_positions", "int64", ("visual_count", unit, 2)),
            *ragged("window", "windows", vision.window_patches),
            *ragged("grid", "grids", "grid_patches"),
        ),
        (TensorInfo("visual_tokens", "float32", ("visual_count", spec.text.hidden_size)),),
        VisionGraph,
        ranges,
        has_custom_op=True,
        reference=reference_tokens,
    )
