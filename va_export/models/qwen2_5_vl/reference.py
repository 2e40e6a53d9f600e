"""Qwen2.5-VL as Hugging Face's `Qwen2_5_VLForConditionalGeneration`, empty."""

from __future__ import annotations

from torch import nn

from va_export.models.empty_model import empty_model
from va_export.models.family import ModelSpec
from va_export.models.multi_axis_rotary import MultiAxisRotaryEmbedding, PlaneRotaryEmbedding
from va_export.models.patch_embedding import PatchEmbedding
from va_export.models.qwen2_5_vl.windows import windowed


def build_model(spec: ModelSpec, attention: str = "anchored") -> nn.Module:
    """See `ModelFamily.build_model`. Both rotary embeddings and the patch embedding are replaced by forms that can be
    exported."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = empty_model(Qwen2_5_VLForConditionalGeneration, spec.hf_config, attention)
    text, vision = spec.text, windowed(spec)
    section = spec.hf_config["text_config"]["rope_parameters"]["mrope_section"]
    model.model.language_model.rotary_emb = MultiAxisRotaryEmbedding(text.head_dim, text.rope_theta, section)
    model.model.visual.rotary_pos_emb = PlaneRotaryEmbedding(vision.hidden_size // vision.num_heads)
    model.model.visual.patch_embed = PatchEmbedding(vision.patch_values, vision.hidden_size, bias=False)
    evaluating: nn.Module = model.train(False)
    return evaluating
