"""InternViT and the projector as a component: frames → visual tokens."""

from __future__ import annotations

from typing import Any

import torch

from va_export.bundle.tensors import DimensionRange, Profiles, TensorInfo
from va_export.models.component import Component
from va_export.models.family import ModelSpec
from va_export.models.internvl2.tiles import tiles
from va_export.settings import Limits


class VisionGraph(torch.nn.Module):
    """(frames, 3, S, S) float32, normalised → (frames · tokens_per_frame, hidden_size) float32."""

    def __init__(self, hf: Any) -> None:
        super().__init__()
        self.hf: Any = hf

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features = self.hf.model.get_image_features(pixel_values, return_dict=True).pooler_output
        tokens: torch.Tensor = features.reshape(-1, features.shape[-1]).to(torch.float32)
        return tokens


def vision_component(spec: ModelSpec) -> Component:
    """The component of a vision tower that sees one square tile a frame."""
    size = tiles(spec).image_size

    def ranges(limits: Limits) -> Profiles:
        return {"frames": {"frames": DimensionRange(1, limits.opt_frames, limits.max_frames)}}

    return Component(
        "vision",
        "vision",
        (TensorInfo("pixel_values", "float32", ("frames", 3, size, size)),),
        (TensorInfo("visual_tokens", "float32", ("visual_count", spec.text.hidden_size)),),
        VisionGraph,
        ranges,
    )
