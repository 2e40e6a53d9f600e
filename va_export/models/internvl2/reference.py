"""InternVL2 as Hugging Face's `InternVLForConditionalGeneration`, empty or with the original weights."""

from __future__ import annotations

import copy

from torch import nn

from va_export.models.family import ModelSpec
from va_export.models.internvl2.layouts import is_original
from va_export.models.rotary_embedding import replace_rotary_embedding


def build_model(spec: ModelSpec, attention: str = "anchored") -> nn.Module:
    """See `ModelFamily.build_model`. The rotary embedding is replaced by the exportable one."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration
    from transformers.initialization import no_init_weights

    if attention == "anchored":
        import va_export.anchor.hugging_face  # noqa: F401  registers the attention under that name

    config = InternVLConfig(**copy.deepcopy(dict(spec.hf_config)))
    config._attn_implementation = {"": "sdpa", "vision_config": "sdpa", "text_config": attention}
    with no_init_weights():
        model = InternVLForConditionalGeneration(config)
    replace_rotary_embedding(model.model.language_model, spec.text)
    eps = spec.hf_config["vision_config"]["layer_norm_eps"]
    for layer in model.model.vision_tower.encoder.layer if is_original(spec) else ():
        for norm in (layer.attention.q_norm, layer.attention.k_norm):
            if not isinstance(norm, nn.Identity):
                norm.variance_epsilon = eps  # Hugging Face fixes it at 1e-6; the original takes the layer norm's
    model.train(False)
    assert isinstance(model, nn.Module)
    return model
