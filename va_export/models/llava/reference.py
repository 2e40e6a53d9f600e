"""LLaVA as Hugging Face's `LlavaOnevisionForConditionalGeneration`, empty."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from va_export.models.family import ModelSpec
from va_export.models.llava.pooled import pooled
from va_export.models.rotary_embedding import replace_rotary_embedding


def build_model(spec: ModelSpec, attention: str = "anchored") -> nn.Module:
    """See `ModelFamily.build_model`. The rotary embedding is replaced by the exportable one; what is not computed with,
    the tower's last norm and an unused newline, is taken out."""
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration
    from transformers.initialization import no_init_weights

    if attention == "anchored":
        import va_export.anchor.hugging_face  # noqa: F401  registers the attention under that name

    config = LlavaOnevisionConfig(**copy.deepcopy(dict(spec.hf_config)))
    config._attn_implementation = {"": "sdpa", "vision_config": "sdpa", "text_config": attention}
    with no_init_weights():
        model: Any = LlavaOnevisionForConditionalGeneration(config)
    replace_rotary_embedding(model.model.language_model, spec.text)
    model.model.vision_tower.post_layernorm = nn.Identity()
    del model.model.vision_tower.embeddings.position_ids  # a buffer without storage; positions are the weights' rows
    if pooled(spec).newline == "no_token":
        model.model.image_newline = None
    model.train(False)
    assert isinstance(model, nn.Module)
    return model
