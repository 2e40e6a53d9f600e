"""Vision tower and projector: frames → visual tokens."""

from __future__ import annotations

from typing import Any

import torch

from va_export.graph.component import Component
from va_export.models.family import ModelSpec


class VisionGraph(torch.nn.Module):
    """(frames, 3, S, S) float32, normalised → (frames · tokens_per_frame, hidden_size) float32.

    What passes between components is float32 at any precision, so that hosts need to know one type.
    """

    def __init__(self, hf: Any) -> None:
        super().__init__()
        self.hf: Any = hf

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features = self.hf.model.get_image_features(pixel_values, return_dict=True).pooler_output
        tokens: torch.Tensor = features.reshape(-1, features.shape[-1]).to(torch.float32)
        return tokens


def vision_component(hf: Any, spec: ModelSpec) -> Component:
    """The vision component; call it under the fake tensor mode that `hf` was made in."""
    size = spec.vision.image_size
    return Component(
        name="vision",
        module=VisionGraph(hf),
        inputs={"pixel_values": torch.zeros(2, 3, size, size)},
        dynamic={"pixel_values": {0: "frames"}},
        outputs=("visual_tokens",),
    )
