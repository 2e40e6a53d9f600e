"""InternVL2's original config.json → `ModelSpec`. Every check of one field against another is in this file.

The layout is that of the OpenGVLab checkpoints (`InternVLChatModel`): a `vision_config` for InternViT, an `llm_config`
for the decoder, and the projector's settings beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from va_export.errors import VaExportError
from va_export.models.family import DynamicNtkScaling, ModelSpec, TextShape
from va_export.models.internvl2.text_backbones import REFUSED_BACKBONES, TEXT_BACKBONES, TextBackbone
from va_export.models.internvl2.tiles import TileShape

FAMILY = "internvl2"
_Value = TypeVar("_Value")


def spec_from_config(
    config: Mapping[str, Any],
    num_decoder_layers: int | None = None,
    image_token_id: int | None = None,
    eos_token_ids: tuple[int, ...] = (),
) -> ModelSpec:
    """See `ModelFamily.spec_from_config`; `eos_token_ids` are added to the config's own."""
    llm = _get(config, "llm_config", dict)
    vit = _get(config, "vision_config", dict)
    architecture, backbone = _backbone(llm)
    text, layers = _text_shape(llm, num_decoder_layers)
    _check_required(llm, backbone)
    vision = _vision_shape(config, vit)
    template = _get(config, "template", str)
    if template not in backbone.prompt_templates:
        raise _invalid(f"template {template!r} is not one of {', '.join(backbone.prompt_templates)}", "template")

    known = backbone.known_tokens.get(text.vocab_size)
    if image_token_id is None and known is not None:
        image_token_id = known.image_token_id
    if image_token_id is not None and not 0 <= image_token_id < text.vocab_size:
        raise VaExportError(
            f"the image token {image_token_id} is outside the vocabulary of {text.vocab_size}",
            where="image_token_id",
        )
    return ModelSpec(
        family=FAMILY,
        hf_config=_hf_config(config, llm, vit, text, vision, image_token_id, backbone),
        text=text,
        vision=vision,
        checkpoint_layers=layers,
        text_architecture=architecture,
        prompt_template=template,
        image_token_id=image_token_id,
        eos_token_ids=tuple(sorted({*_eos(llm), *eos_token_ids, *(known.eos_token_ids if known else ())})),
    )


def _backbone(llm: Mapping[str, Any]) -> tuple[str, TextBackbone]:
    architectures = _get(llm, "architectures", list)
    for architecture in architectures:
        if architecture in TEXT_BACKBONES:
            return architecture, TEXT_BACKBONES[architecture]
    reason = next((f": {REFUSED_BACKBONES[name]}" for name in architectures if name in REFUSED_BACKBONES), "")
    raise VaExportError(
        f"this model's decoder, {', '.join(map(str, architectures))}, is not supported{reason}",
        where="config.json: llm_config.architectures",
        fix=f"use a checkpoint whose decoder is one of: {', '.join(TEXT_BACKBONES)}",
    )


def _text_shape(llm: Mapping[str, Any], num_decoder_layers: int | None) -> tuple[TextShape, int]:
    """The decoder's shape and the number of layers in the checkpoint."""
    hidden, heads = _positive(llm, "hidden_size"), _positive(llm, "num_attention_heads")
    kv_heads = _positive(llm, "num_key_value_heads") if llm.get("num_key_value_heads") is not None else heads
    layers = _positive(llm, "num_hidden_layers")
    head_dim = _positive(llm, "head_dim") if llm.get("head_dim") is not None else hidden // heads
    if hidden % heads or heads % kv_heads or head_dim % 2:
        raise _invalid(
            f"hidden_size {hidden}, {heads} attention heads and {kv_heads} key/value heads do not divide "
            "evenly into heads of even size",
            "llm_config",
        )
    if _get(llm, "hidden_act", str) != "silu":
        raise _invalid(f"hidden_act {llm['hidden_act']!r} is not silu", "llm_config.hidden_act")
    if llm.get("tie_word_embeddings", False):
        raise _invalid("tied word embeddings: the decoder has an output matrix of its own", "llm_config")
    if num_decoder_layers is not None and not 1 <= num_decoder_layers <= layers:
        raise VaExportError(
            f"{num_decoder_layers} decoder layers asked for, the checkpoint has {layers}",
            where="num_decoder_layers",
            fix=f"choose 1 to {layers}, or leave it out for all",
        )
    shape = TextShape(
        hidden_size=hidden,
        num_layers=num_decoder_layers or layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=_positive(llm, "intermediate_size"),
        vocab_size=_positive(llm, "vocab_size"),
        max_position_embeddings=_positive(llm, "max_position_embeddings"),
        rms_norm_eps=_positive_real(llm, "rms_norm_eps"),
        rope_theta=_positive_real(llm, "rope_theta"),
        rope_scaling=_rope_scaling(llm),
    )
    return shape, layers


def _check_required(llm: Mapping[str, Any], backbone: TextBackbone) -> None:
    for key, value in backbone.required.items():
        if llm.get(key, value) != value:
            raise _invalid(f"{key} is {llm[key]!r}, only {value!r} is supported", f"llm_config.{key}")


def _rope_scaling(llm: Mapping[str, Any]) -> DynamicNtkScaling | None:
    scaling = llm.get("rope_scaling")
    if scaling is None:
        return None
    kind = scaling.get("type", scaling.get("rope_type")) if isinstance(scaling, Mapping) else scaling
    if kind != "dynamic":
        raise _invalid(f"rope_scaling {kind!r} is not supported, only 'dynamic' or null", "llm_config.rope_scaling")
    factor = _positive_real(scaling, "factor")
    if factor < 1.0:
        raise _invalid(f"a dynamic rope_scaling factor of {factor} is below 1", "llm_config.rope_scaling")
    return DynamicNtkScaling(factor)


def _vision_shape(config: Mapping[str, Any], vit: Mapping[str, Any]) -> TileShape:
    hidden, heads = _positive(vit, "hidden_size"), _positive(vit, "num_attention_heads")
    image, patch = _positive(vit, "image_size"), _positive(vit, "patch_size")
    forced = config.get("force_image_size") or image
    if forced != image:
        raise _invalid(
            f"force_image_size {forced} is not the vision tower's {image}: positions would be interpolated",
            "force_image_size",
        )
    if hidden % heads:
        raise _invalid(f"hidden_size {hidden} is not a multiple of {heads} attention heads", "vision_config")
    if _get(vit, "hidden_act", str) != "gelu":
        raise _invalid(f"hidden_act {vit['hidden_act']!r} is not gelu", "vision_config.hidden_act")
    if vit.get("num_channels", 3) != 3:
        raise _invalid(f"num_channels {vit['num_channels']} is not 3", "vision_config.num_channels")
    if _get(vit, "norm_type", str) not in ("layer_norm", "rms_norm"):
        raise _invalid(f"norm_type {vit['norm_type']!r} is not layer_norm or rms_norm", "vision_config.norm_type")
    if config.get("select_layer", -1) != -1:
        raise _invalid(f"select_layer {config['select_layer']} is not -1, the last layer", "select_layer")
    if _get(config, "ps_version", str) != "v2":
        raise _invalid(f"ps_version {config['ps_version']!r}, a transposed pixel shuffle, is not v2", "ps_version")
    ratio = _positive_real(config, "downsample_ratio")
    step = round(1 / ratio)
    grid = image // patch
    if step * ratio != 1.0 or image % patch or grid % step:
        raise _invalid(
            f"image_size {image}, patch_size {patch} and downsample_ratio {ratio} do not divide evenly",
            "vision_config",
        )
    return TileShape(
        positions_per_frame=grid**2 + 1,  # a class token beside the patches
        image_size=image,
        patch_size=patch,
        tokens_per_frame=(grid // step) ** 2,
        hidden_size=hidden,
        num_layers=_positive(vit, "num_hidden_layers"),
        num_heads=heads,
        intermediate_size=_positive(vit, "intermediate_size"),
    )


def _hf_config(
    config: Mapping[str, Any],
    llm: Mapping[str, Any],
    vit: Mapping[str, Any],
    text: TextShape,
    vision: TileShape,
    image_token_id: int | None,
    backbone: TextBackbone,
) -> dict[str, Any]:
    """Arguments of `transformers.InternVLConfig` that describe the same model."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": text.rope_theta}
    if text.rope_scaling is not None:
        rope |= {"rope_type": "dynamic", "factor": text.rope_scaling.factor}
    return {
        # Our graphs are told where the placeholders are; Hugging Face's class wants an id all the same.
        "image_token_id": text.vocab_size - 1 if image_token_id is None else image_token_id,
        "image_seq_length": vision.tokens_per_frame,
        "downsample_ratio": float(config["downsample_ratio"]),
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,  # InternVLConfig's default is True, which would drop the output matrix
        "vision_config": {
            "hidden_size": vision.hidden_size,
            "num_hidden_layers": vision.num_layers,
            "num_attention_heads": vision.num_heads,
            "intermediate_size": vision.intermediate_size,
            "attention_bias": _get(vit, "qkv_bias", bool),
            "use_qk_norm": _get(vit, "qk_normalization", bool),
            "hidden_act": "gelu",
            "norm_type": vit["norm_type"],
            "layer_norm_eps": _positive_real(vit, "layer_norm_eps"),
            "image_size": [vision.image_size, vision.image_size],
            "patch_size": [vision.patch_size, vision.patch_size],
        },
        "text_config": {
            "model_type": backbone.hf_model_type,
            "hidden_size": text.hidden_size,
            "num_hidden_layers": text.num_layers,
            "num_attention_heads": text.num_heads,
            "num_key_value_heads": text.num_kv_heads,
            "head_dim": text.head_dim,
            "intermediate_size": text.intermediate_size,
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.max_position_embeddings,
            "rms_norm_eps": text.rms_norm_eps,
            "hidden_act": "silu",
            **({} if backbone.bias_key is None else {"attention_bias": bool(llm.get(backbone.bias_key, False))}),
            "rope_parameters": rope,
            "tie_word_embeddings": False,
            "bos_token_id": llm.get("bos_token_id"),
            "eos_token_id": llm.get("eos_token_id"),
        },
    }


def _eos(llm: Mapping[str, Any]) -> tuple[int, ...]:
    eos = llm.get("eos_token_id")
    return () if eos is None else tuple(eos) if isinstance(eos, list) else (int(eos),)


def _get(section: Mapping[str, Any], key: str, kind: type[_Value] | tuple[type[_Value], ...]) -> _Value:
    if key not in section:
        raise VaExportError(f"config.json lacks {key}", where="config.json", fix="complete it from the original")
    if not isinstance(section[key], kind):
        expected = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise _invalid(f"{key} is {section[key]!r}, not of type {expected}", key)
    value: _Value = section[key]
    return value


def _positive(section: Mapping[str, Any], key: str) -> int:
    value = _get(section, key, int)
    if value <= 0 or isinstance(value, bool):
        raise _invalid(f"{key} is {value!r}, not a positive number", key)
    return value


def _positive_real(section: Mapping[str, Any], key: str) -> float:
    value = float(_get(section, key, (float, int)))
    if not 0 < value < float("inf"):
        raise _invalid(f"{key} is {value}, not a positive number", key)
    return value


def _invalid(what: str, key: str) -> VaExportError:
    return VaExportError(what, where=f"config.json: {key}", fix="use the checkpoint's original config.json")
