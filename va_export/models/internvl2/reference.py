"""InternVL2 as Hugging Face's `InternVLForConditionalGeneration`, empty or with the original weights."""

from __future__ import annotations

from torch import nn

from va_export.models.empty_model import empty_model
from va_export.models.family import ModelSpec
from va_export.models.internvl2.layouts import is_original
from va_export.models.rotary_embedding import replace_rotary_embedding


def build_model(spec: ModelSpec, attention: str = "anchored") -> nn.Module:
    """See `ModelFamily.build_model`. The rotary embedding is replaced by the exportable one."""
    from transformers import InternVLForConditionalGeneration

    model = empty_model(InternVLForConditionalGeneration, spec.hf_config, attention)
    replace_rotary_embedding(model.model.language_model, spec.text)
    eps = spec.hf_config["vision_config"]["layer_norm_eps"]
    for layer in model.model.vision_tower.encoder.layer if is_original(spec) else ():
        for norm in (layer.attention.q_norm, layer.attention.k_norm):
            if not isinstance(norm, nn.Identity):
                norm.variance_epsilon = eps  # Hugging Face fixes it at 1e-6; the original takes the layer norm's
    evaluating: nn.Module = model.train(False)
    return evaluating
