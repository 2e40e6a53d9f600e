"""Qwen2.5-VL as Hugging Face's `Qwen2_5_VLForConditionalGeneration`, empty."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from va_export.models.family import ModelSpec
from va_export.models.qwen2_5_vl.patches import patches
from va_export.models.qwen2_5_vl.rope import MultiAxisRotaryEmbedding, PlaneRotaryEmbedding


class PatchEmbedding(nn.Module):
    """A patch's pixels (P, C·frames·patch²) → (P, hidden): a convolution whose stride is its kernel's size."""

    def __init__(self, patch_values: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Linear(patch_values, hidden_size, bias=False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self.proj(pixel_values.to(self.proj.weight.dtype))
        return embedded


def build_model(spec: ModelSpec, attention: str = "anchored") -> nn.Module:
    """See `ModelFamily.build_model`. Both rotary embeddings and the patch embedding are replaced by forms that can be
    exported."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from transformers.initialization import no_init_weights

    if attention == "anchored":
        import va_export.anchor.hugging_face  # noqa: F401  registers the attention under that name

    config = Qwen2_5_VLConfig(**copy.deepcopy(dict(spec.hf_config)))
    config._attn_implementation = {"": "sdpa", "vision_config": "sdpa", "text_config": attention}
    with no_init_weights():
        model: Any = Qwen2_5_VLForConditionalGeneration(config)  # type: ignore[no-untyped-call]
    text, vision = spec.text, patches(spec)
    section = spec.hf_config["text_config"]["rope_parameters"]["mrope_section"]
    model.model.language_model.rotary_emb = MultiAxisRotaryEmbedding(text.head_dim, text.rope_theta, section)
    model.model.visual.rotary_pos_emb = PlaneRotaryEmbedding(vision.hidden_size // vision.num_heads)
    model.model.visual.patch_embed = PatchEmbedding(vision.patch_values, vision.hidden_size)
    model.train(False)
    assert isinstance(model, nn.Module)
    return model
