"""The tower and its merger as a component: patches → visual tokens.

Most blocks attend within windows, the others within a grid. Both are ragged: a window at the edge of a picture has
fewer patches, and pictures of several sizes have grids of several sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from va_export.bundle.tensors import DimensionRange
from va_export.models.component import Component, visual_range
from va_export.models.family import ModelSpec
from va_export.models.patch_component import patch_component, ragged_inputs
from va_export.models.qwen2_5_vl.windows import windowed
from va_export.models.ragged_attention import attend_within, pictures_of
from va_export.settings import Limits


class VisionGraph(torch.nn.Module):
    """See `vision_component` for the inputs."""

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
            attended = attend_within(block.attn, block.norm1(hidden_states), cos[:, None], sin[:, None], within)
            hidden_states = hidden_states + attended
            hidden_states = hidden_states + block.mlp(block.norm2(hidden_states))
        merger = tower.merger
        merged = merger.ln_q(hidden_states).reshape(pixel_values.shape[0], -1)
        tokens: torch.Tensor = merger.mlp(merged).to(torch.float32)
        return tokens


def reference_tokens(hf: Any, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The same by Hugging Face's own forward, which makes its windows itself."""
    pixel_values, patch_positions, *_, grid_lengths, _ = inputs
    output = hf.model.visual(pixel_values.flatten(0, 1), grid_thw=pictures_of(patch_positions, grid_lengths))
    tokens: torch.Tensor = output.pooler_output.to(torch.float32)
    return tokens


def vision_component(spec: ModelSpec) -> Component:
    """The tower's component, with windows beside grids."""
    vision = windowed(spec)
    unit = vision.merge_size**2
    a_window = vision.window_patches // unit

    def ranges(limits: Limits) -> dict[str, DimensionRange]:
        tokens = visual_range(limits, vision.visual_tokens)
        grids = [vision.grids(frames) for frames in (limits.opt_frames, limits.max_frames)]
        # Pictures two tokens high have twice as many windows as square ones; and one for what is left over.
        return {"windows": DimensionRange(1, tokens.opt // a_window + grids[0], 2 * tokens.max // a_window + grids[1])}

    windows = ragged_inputs("window", "windows", vision.window_patches, unit)
    return patch_component(spec, VisionGraph, reference_tokens, windows, ranges)
