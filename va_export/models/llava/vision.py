"""SigLIP, projector, pooling and newlines as a component: frames → visual tokens in the sequence's order."""

from __future__ import annotations

from typing import Any

import torch

from va_export.bundle.tensors import DimensionRange, Profiles, TensorInfo
from va_export.models.component import Component
from va_export.models.family import ModelSpec
from va_export.models.llava.pooled import PooledShape, pooled
from va_export.settings import Limits


class VisionGraph(torch.nn.Module):
    """(frames, 3, S, S) float32, normalised → (N, hidden_size) float32, newlines in their places.

    The projector comes before the pooling, and the tower's last norm is not used: as in the original.
    """

    def __init__(self, hf: Any, vision: PooledShape) -> None:
        super().__init__()
        self.hf: Any = hf
        self._vision = vision

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        model, side = self.hf.model, self._vision.side
        tower = model.vision_tower
        # By modules alone, none of their parameters: where memory is short they are there while their module runs.
        patches = tower.embeddings.patch_embedding(pixel_values.to(self.hf.dtype)).flatten(2).transpose(1, 2)
        places = torch.arange(side**2, device=pixel_values.device)
        hidden_states = patches + tower.embeddings.position_embedding(places)
        for layer in tower.encoder.layers:
            hidden_states = layer(hidden_states, attention_mask=None)
        projected = model.multi_modal_projector(hidden_states)  # (F, side², D)
        plane = projected.transpose(1, 2).unflatten(2, (side, side))
        tokens = self._pool(plane).permute(0, 2, 3, 1)  # (F, rows, columns, D)
        return self._with_newlines(tokens).to(torch.float32)

    def _pool(self, plane: torch.Tensor) -> torch.Tensor:
        """(F, D, side, side) → half as many rows and columns."""
        if self._vision.pooling == "average":
            return torch.nn.functional.avg_pool2d(plane, 2)
        size = (self._vision.pooled, self._vision.pooled)
        return torch.nn.functional.interpolate(plane, size=size, mode="bilinear")

    def _with_newlines(self, tokens: torch.Tensor) -> torch.Tensor:
        frames, width = tokens.shape[0], tokens.shape[-1]
        newline = self.hf.model.image_newline
        match self._vision.newline:
            case "grid":
                column = newline.expand(frames, tokens.shape[1], 1, width)
                return torch.cat((tokens, column), dim=2).reshape(-1, width)
            case "frame":
                return torch.cat((tokens.flatten(1, 2), newline.expand(frames, 1, width)), dim=1).reshape(-1, width)
            case "one_token":
                return torch.cat((tokens.reshape(-1, width), newline[None]), dim=0)
        return tokens.reshape(-1, width)


def vision_component(spec: ModelSpec) -> Component:
    """The component of a tower that sees one square a frame."""
    vision = pooled(spec)

    def ranges(limits: Limits) -> Profiles:
        return {"frames": {"frames": DimensionRange(1, limits.opt_frames, limits.max_frames)}}

    return Component(
        "vision",
        "vision",
        (TensorInfo("pixel_values", "float32", ("frames", 3, vision.image_size, vision.image_size)),),
        (TensorInfo("visual_tokens", "float32", ("visual_count", spec.text.hidden_size)),),
        lambda hf: VisionGraph(hf, vision),
        ranges,
    )
