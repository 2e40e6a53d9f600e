"""InternVL2's config.json → `ModelSpec`. Checks of one field against another are in this file; what a field may hold by
itself stands in `config_file`, and what is where in which layout in `layouts`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from va_export.checkpoint.special_tokens import as_tuple
from va_export.errors import VaExportError
from va_export.models.decoder_config import (
    check_in_vocabulary,
    invalid,
    listed,
    refuse_max_pixels,
    stated_theta,
    text_shape,
)
from va_export.models.family import AS_IT_IS, Choices, DynamicNtkScaling, LongRopeScaling, ModelSpec, TextShape
from va_export.models.internvl2.config_file import ConfigFile, LlmConfig, Rope
from va_export.models.internvl2.layouts import Description, described
from va_export.models.internvl2.text_backbones import TEXT_BACKBONES, KnownTokens, TextBackbone
from va_export.models.internvl2.tiles import TileShape

FAMILY = "internvl2"


def spec_from_config(
    config: Mapping[str, Any],
    choices: Choices = AS_IT_IS,
    stop_ids: tuple[int, ...] = (),
    end_of_turn_id: int | None = None,
    names: Collection[str] = (),
) -> ModelSpec:
    """See `ModelFamily.spec_from_config`.

    Args:
        choices: without an id of the placeholder, the published checkpoints' if the vocabulary is theirs.
        stop_ids: ids that end an answer besides the configuration's own and the end of a turn.
        end_of_turn_id: None where no tokenizer tells; the published checkpoints' then, if the vocabulary is theirs.
        names: of the checkpoint's tensors, which tell whether tied matrices are both there.
    """
    refuse_max_pixels(choices)
    said = described(config, names)
    file, section, backbone = said.file, said.section, TEXT_BACKBONES[said.decoder]
    llm = file.llm_config
    text = text_shape(
        llm,
        choices,
        rope_theta=stated_theta(llm.rope_theta, _ropes(llm), f"{section}."),
        rope_scaling=_rope_scaling(llm, section),
        prefix=f"{section}.",
    )
    _check_required(llm, backbone, section)
    vision = _vision_shape(said)
    config_eos = as_tuple(llm.eos_token_id)
    known = backbone.known_tokens.get(text.vocab_size)
    if end_of_turn_id is not None:
        stop_ids = (*stop_ids, end_of_turn_id)
    elif known is not None:
        stop_ids = (*stop_ids, *known.eos_token_ids)
    image_token_id = _image_token_id(said, choices, known)
    check_in_vocabulary("the image token", image_token_id, text.vocab_size, "image_token_id")
    check_in_vocabulary("bos_token_id", llm.bos_token_id, text.vocab_size, f"config.json: {section}.bos_token_id")
    for number in config_eos:
        check_in_vocabulary("eos_token_id", number, text.vocab_size, f"config.json: {section}.eos_token_id")
    return ModelSpec(
        family=FAMILY,
        hf_config=_hf_config(file, text, vision, image_token_id, backbone),
        text=text,
        vision=vision,
        checkpoint_layers=llm.num_hidden_layers,
        text_architecture=said.decoder,
        prompt_template=file.template,
        image_token_id=image_token_id,
        eos_token_ids=tuple(sorted({*config_eos, *stop_ids})),
        names=said.names,
    )


def _image_token_id(said: Description, choices: Choices, known: KnownTokens | None) -> int | None:
    """The placeholder's id: what config.json states, which no other word may contradict, else what was found or is
    published."""
    if said.image_token_id is None:
        return known.image_token_id if choices.image_token_id is None and known is not None else choices.image_token_id
    if choices.image_token_id not in (None, said.image_token_id):
        raise VaExportError(
            f"config.json gives the placeholder the id {said.image_token_id}, its tokenizer or --image-token-id"
            f" {choices.image_token_id}",
            where="config.json: image_token_id",
            fix="take config.json and the tokenizer's files from one checkpoint, and leave --image-token-id out",
        )
    return said.image_token_id


def _check_required(llm: LlmConfig, backbone: TextBackbone, section: str) -> None:
    for key, value in backbone.required.items():
        if (said := getattr(llm, key)) not in (None, value):
            raise invalid(f"{key} is {said!r}, only {value!r} is supported", f"{section}.{key}")


Scaling = DynamicNtkScaling | LongRopeScaling | None


def _rope_scaling(llm: LlmConfig, section: str) -> Scaling:
    said = {key: _scaling(llm, rope, f"{section}.{key}") for key, rope in _ropes(llm).items()}
    if len(set(said.values())) > 1:
        raise invalid(f"two different scalings of positions: {listed(said)}", f"{section}.rope_scaling")
    return next(iter(said.values()), None)


def _ropes(llm: LlmConfig) -> dict[str, Rope]:
    tables = {"rope_scaling": llm.rope_scaling, "rope_parameters": llm.rope_parameters}
    return {key: rope for key, rope in tables.items() if rope is not None}


def _scaling(llm: LlmConfig, rope: Rope, place: str) -> Scaling:
    section, key = place.split(".")
    kinds = {kind for kind in (rope.type, rope.rope_type) if kind is not None}
    if len(kinds) > 1:
        raise invalid(f"{key} has the type {rope.type!r} and the rope_type {rope.rope_type!r}", place)
    kind = kinds.pop() if kinds else "default"
    if kind == "default" and rope.factor in (None, 1):
        return None
    if kind == "default":
        raise invalid(f"{key} has the factor {rope.factor} and no type that it belongs to", place)
    if kind in ("su", "longrope"):
        return _long_rope(llm, rope, section, key)
    if kind != "dynamic":
        raise invalid(f"{key} {kind!r} is not supported, only 'dynamic', 'longrope' ('su') or none", place)
    if rope.factor is None:
        raise invalid(f"{key} 'dynamic' lacks factor", f"{place}.factor")
    if rope.original_max_position_embeddings not in (None, llm.max_position_embeddings):
        raise invalid(
            f"original_max_position_embeddings {rope.original_max_position_embeddings} is not"
            f" max_position_embeddings, {llm.max_position_embeddings}",
            f"{place}.original_max_position_embeddings",
        )
    return DynamicNtkScaling(rope.factor)


def _long_rope(llm: LlmConfig, rope: Rope, section: str, key: str) -> LongRopeScaling:
    head_dim = llm.width_of_head
    original = rope.original_max_position_embeddings or llm.original_max_position_embeddings
    if original is None or not 1 < original <= llm.max_position_embeddings:
        raise invalid(
            f"original_max_position_embeddings {original} is not between 2 and max_position_embeddings,"
            f" {llm.max_position_embeddings}",
            f"{section}.original_max_position_embeddings",
        )
    for name in ("short_factor", "long_factor"):
        factors = getattr(rope, name)
        if factors is None or len(factors) != head_dim // 2:
            raise invalid(
                f"{name} has {'no' if factors is None else len(factors)} factors for the {head_dim // 2} frequencies of"
                f" head_dim {head_dim}",
                f"{section}.{key}.{name}",
            )
    assert rope.short_factor is not None and rope.long_factor is not None
    return LongRopeScaling(tuple(rope.short_factor), tuple(rope.long_factor), original)


def _vision_shape(said: Description) -> TileShape:
    file = said.file
    vit, ratio = file.vision_config, file.downsample_ratio
    image, patch = vit.image_size, vit.patch_size
    if (file.force_image_size or image) != image:
        raise invalid(
            f"force_image_size {file.force_image_size} is not the vision tower's {image}: positions would be"
            " interpolated",
            "force_image_size",
        )
    if vit.hidden_size % vit.num_attention_heads:
        raise invalid(
            f"hidden_size {vit.hidden_size} is not a multiple of {vit.num_attention_heads} attention heads",
            "vision_config",
        )
    step, grid = round(1 / ratio), image // patch
    if step * ratio != 1.0 or image % patch or grid % step:
        raise invalid(
            f"image_size {image}, patch_size {patch} and downsample_ratio {ratio} do not divide evenly",
            "vision_config",
        )
    tokens = (grid // step) ** 2
    if said.tokens_per_frame not in (None, tokens):
        raise invalid(
            f"image_seq_length {said.tokens_per_frame} is not the {tokens} tokens of a tile of {image} pixels, patches"
            f" of {patch} and downsample_ratio {ratio}",
            "image_seq_length",
        )
    return TileShape(
        positions_per_frame=grid**2 + 1,  # a class token beside the patches
        image_size=image,
        patch_size=patch,
        tokens_per_frame=tokens,
        hidden_size=vit.hidden_size,
        num_layers=vit.num_hidden_layers,
        num_heads=vit.num_attention_heads,
        intermediate_size=vit.intermediate_size,
    )


def _hf_config(
    file: ConfigFile, text: TextShape, vision: TileShape, image_token_id: int | None, backbone: TextBackbone
) -> dict[str, Any]:
    """Arguments of `transformers.InternVLConfig` that describe the same model."""
    bias = {} if backbone.bias_key is None else {"attention_bias": bool(getattr(file.llm_config, backbone.bias_key))}
    return {
        # Our graphs are told where the placeholders are; Hugging Face's class wants an id all the same.
        "image_token_id": text.vocab_size - 1 if image_token_id is None else image_token_id,
        "image_seq_length": vision.tokens_per_frame,
        "downsample_ratio": file.downsample_ratio,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,  # InternVLConfig's default is True, which would drop the output matrix
        "vision_config": {
            "hidden_size": vision.hidden_size,
            "num_hidden_layers": vision.num_layers,
            "num_attention_heads": vision.num_heads,
            "intermediate_size": vision.intermediate_size,
            "attention_bias": file.vision_config.qkv_bias,
            "use_qk_norm": file.vision_config.qk_normalization,
            "hidden_act": "gelu",
            "norm_type": file.vision_config.norm_type,
            "layer_norm_eps": file.vision_config.layer_norm_eps,
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
            **bias,
            "rope_parameters": _rope_parameters(text),
            "pad_token_id": None,  # a class's default may lie outside of the vocabulary
            "sliding_window": None,
            "tie_word_embeddings": False,
            "bos_token_id": file.llm_config.bos_token_id,
            "eos_token_id": file.llm_config.eos_token_id,
        },
    }


def _rope_parameters(text: TextShape) -> dict[str, Any]:
    match text.rope_scaling:
        case DynamicNtkScaling(factor):
            return {"rope_type": "dynamic", "rope_theta": text.rope_theta, "factor": factor}
        case LongRopeScaling(short, long, original):
            factors = {"short_factor": list(short), "long_factor": list(long)}
            named = {"rope_type": "longrope", "original_max_position_embeddings": original}
            return {**named, **factors, "rope_theta": text.rope_theta}
    return {"rope_type": "default", "rope_theta": text.rope_theta}
