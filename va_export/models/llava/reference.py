"""LLaVA as Hugging Face's `LlavaOnevisionForConditionalGeneration`, empty."""

from __future__ import annotations

from torch import nn

from va_export.models.empty_model import empty_model
from va_export.models.family import ModelSpec
from va_export.models.llava.pooled import pooled
from va_export.models.rotary_embedding import replace_rotary_embedding


def build_model(spec: ModelSpec, attention: str = "anchored") -> nn.Module:
    """See `ModelFamily.build_model`. The rotary embedding is replaced by the exportable one; what is not computed with,
    the tower's last norm and an unused newline, is taken out."""
    from transformers import LlavaOnevisionForConditionalGeneration

    model = empty_model(LlavaOnevisionForConditionalGeneration, spec.hf_config, attention)
    replace_rotary_embedding(model.model.language_model, spec.text)
    model.model.vision_tower.post_layernorm = nn.Identity()
    del model.model.vision_tower.embeddings.position_ids  # a buffer without storage; positions are the weights' rows
    if pooled(spec).newline == "no_token":
        model.model.image_newline = None
    evaluating: nn.Module = model.train(False)
    return evaluating
