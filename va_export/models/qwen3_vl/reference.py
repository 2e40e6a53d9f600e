"""Qwen3-VL as Hugging Face's `Qwen3VLForConditionalGeneration`, empty."""

from __future__ import annotations

from torch import nn

from va_export.models.empty_model import empty_model
from va_export.models.family import ModelSpec
from va_export.models.multi_axis_rotary import InterleavedRotaryEmbedding, PlaneRotaryEmbedding
from va_export.models.patch_embedding import PatchEmbedding
from va_export.models.qwen3_vl.config import deep_patches


def build_model(spec: ModelSpec, attention: str = "anchored") -> nn.Module:
    """See `ModelFamily.build_model`. Both rotary embeddings and the patch embedding are replaced by forms that can be
    exported."""
    from transformers import Qwen3VLForConditionalGeneration

    model = empty_model(Qwen3VLForConditionalGeneration, spec.hf_config, attention)
    text, vision, hf = spec.text, deep_patches(spec), spec.hf_config
    section = hf["text_config"]["rope_parameters"]["mrope_section"]
    theta = hf["vision_config"]["rope_parameters"]["rope_theta"]
    model.model.language_model.rotary_emb = InterleavedRotaryEmbedding(text.head_dim, text.rope_theta, section)
    model.model.visual.rotary_pos_emb = PlaneRotaryEmbedding(vision.hidden_size // vision.num_heads, theta)
    model.model.visual.patch_embed = PatchEmbedding(vision.patch_values, vision.hidden_size, bias=True)
    evaluating: nn.Module = model.train(False)
    return evaluating
