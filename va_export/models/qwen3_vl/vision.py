"""The tower and its mergers as a component: patches → visual tokens, and behind each what the decoder's first layers
add. Every block attends within a grid, one step of time of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from va_export.bundle.tensors import TensorInfo
from va_export.models.component import Component
from va_export.models.family import ModelSpec
from va_export.models.patch_component import patch_component
from va_export.models.qwen3_vl.config import deep_patches
from va_export.models.ragged_attention import attend_within, pictures_of


class VisionGraph(torch.nn.Module):
    """See `vision_component` for the inputs."""

    def __init__(self, hf: Any) -> None:
        super().__init__()
        self.hf: Any = hf

    def forward(
        self,
        pixel_values: torch.Tensor,
        patch_positions: torch.Tensor,
        learned_places: torch.Tensor,
        learned_weights: torch.Tensor,
        grid_rows: torch.Tensor,
        grid_lengths: torch.Tensor,
        grid_slots: torch.Tensor,
    ) -> torch.Tensor:
        tower = self.hf.model.visual
        hidden_states = tower.patch_embed(pixel_values.flatten(0, 1))  # (P, C)
        learned = tower.pos_embed(learned_places.flatten(0, 1))  # (P, 4, C)
        learned = (learned * learned_weights.flatten(0, 1)[..., None]).sum(1)
        hidden_states = hidden_states + learned.to(hidden_states.dtype)
        cos, sin = tower.rotary_pos_emb(hidden_states, patch_positions.flatten(0, 1))
        within = (grid_rows, grid_lengths, grid_slots.flatten())
        further: list[torch.Tensor] = []
        for number, block in enumerate(tower.blocks):
            attended = attend_within(block.attn, block.norm1(hidden_states), cos[:, None], sin[:, None], within)
            hidden_states = hidden_states + attended
            hidden_states = hidden_states + block.mlp(block.norm2(hidden_states))
            if number in tower.deepstack_visual_indexes:
                further.append(tower.deepstack_merger_list[len(further)](hidden_states))
        return torch.cat((tower.merger(hidden_states), *further), dim=-1).to(torch.float32)


def reference_tokens(hf: Any, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The same by Hugging Face's own forward, which makes its positions itself."""
    pixel_values, patch_positions, *_, grid_lengths, _ = inputs
    output = hf.model.visual(pixel_values.flatten(0, 1), grid_thw=pictures_of(patch_positions, grid_lengths))
    return torch.cat((output.pooler_output, *output.deepstack_features), dim=-1).to(torch.float32)


def vision_component(spec: ModelSpec) -> Component:
    """The tower's component; each patch lies between four learned positions."""
    shape = ("visual_count", deep_patches(spec).merge_size ** 2, 4)
    learned = (TensorInfo("learned_places", "int64", shape), TensorInfo("learned_weights", "float32", shape))
    return patch_component(spec, VisionGraph, reference_tokens, learned)
