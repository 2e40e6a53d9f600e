"""What config.json says in each of the two layouts that InternVL's checkpoints come in, in one form.

The original is OpenGVLab's (`InternVLChatModel`), whose tower packs its queries, keys and values. In transformers'
(`InternVLForConditionalGeneration`: InternVL3-8B-hf, InternVL3_5-8B-HF) tensors have the names of the class: as
`save_pretrained` of 5.17 writes them (`vision_tower`, `language_model.model`; so did 4.52, by its conversion table), or
the class's own (`model.vision_tower`, `model.language_model`, `lm_head`). The decoders of that layout are those of
transformers' conversion script (`convert_internvl_weights_to_hf.py`, where InternLM2 becomes a Llama) and of
OpenGVLab's for InternVL3.5 (Qwen3); no published file of it was at hand.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from va_export.checkpoint.json_files import as_form
from va_export.errors import VaExportError
from va_export.models.decoder_config import CONFIG, invalid, listed
from va_export.models.family import ModelSpec
from va_export.models.internvl2.config_file import (
    ConfigFile,
    DecoderName,
    TextName,
    TowerConfig,
    TransformersFile,
    VisionConfig,
)
from va_export.models.internvl2.text_backbones import REFUSED_BACKBONES, TEXT_BACKBONES

ORIGINAL, TRANSFORMERS = "InternVLChatModel", "InternVLForConditionalGeneration"
TRANSFORMERS_TEMPLATE = "transformers"  # the name that we give its chat template, which has none

_ORIGINAL_PREFIX = "language_model."
_SAVED = {"tower": "", "text": "language_model.model.", "head": "language_model.lm_head.weight"}
_OF_THE_CLASS = {"tower": "model.", "text": "model.language_model.", "head": "lm_head.weight"}
_CLASS_PREFIXES = ("model.vision_tower.", "model.multi_modal_projector.", "model.language_model.")

_DECODERS = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
_REFUSED = {
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "internlm3": "InternLM3ForCausalLM",
}
# InternVL3.5-Flash, by public ports of its code: a router gives a tile 256 or 64 tokens, by a second projector.
_FLASH_KEYS = ("flash_mode", "flash_relative_threshold", "flash_absolute_threshold")
_FLASH_TENSORS = ("mlp2.", "gating.", "pooling_before_gating.")


@dataclass(frozen=True)
class Description:
    """A model's configuration, whichever layout it came in.

    Attributes:
        file: in the original's form.
        decoder: its architecture, a key of `TEXT_BACKBONES`.
        section: the key of config.json whose table holds the decoder's settings.
        names: `ModelSpec.names`.
        image_token_id: the placeholder's id, if config.json states it.
        tokens_per_frame: as config.json states it, if it does.
    """

    file: ConfigFile
    decoder: str
    section: str
    names: Mapping[str, str]
    image_token_id: int | None = None
    tokens_per_frame: int | None = None


def is_original(spec: ModelSpec) -> bool:
    """Whether a model of this family comes from the original layout."""
    return "tower" not in spec.names


def is_transformers(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of transformers' layout."""
    return TRANSFORMERS in (config.get("architectures") or ())


def described(config: Mapping[str, Any], names: Collection[str]) -> Description:
    """Read a config.json of either layout.

    Args:
        names: of the checkpoint's tensors, if they are known.

    Raises:
        VaExportError: a key is missing or holds what it must not, or the decoder is none of ours.
    """
    _refuse_flash(config, names)
    if is_transformers(config):
        return _from_transformers(config, names)
    return _from_original(config, names)


def _refuse_flash(config: Mapping[str, Any], names: Collection[str]) -> None:
    keys = [key for key in _FLASH_KEYS if config.get(key) not in (None, False)]
    tensors = sorted(name for name in names if name.removeprefix("model.").startswith(_FLASH_TENSORS))
    if keys or tensors:
        raise VaExportError(
            f"this is a Flash model ({(keys or tensors)[0]}), which gives tiles different numbers of tokens",
            where=f"{CONFIG}: {keys[0]}" if keys else tensors[0],
            fix="use the model of the same size without Flash in its name",
        )


def _from_original(config: Mapping[str, Any], names: Collection[str]) -> Description:
    named = as_form(dict(config), DecoderName, what="model's configuration", where=CONFIG)
    decoder = next((name for name in named.llm_config.architectures if name in TEXT_BACKBONES), None)
    if decoder is None:
        raise _unsupported(named.llm_config.architectures, "llm_config.architectures", TEXT_BACKBONES)
    file = as_form(dict(config), ConfigFile, what="model's configuration", where=CONFIG)
    backbone = TEXT_BACKBONES[decoder]
    if file.template not in backbone.prompt_templates:
        raise VaExportError(
            f"template {file.template!r} is not one of {', '.join(backbone.prompt_templates)}",
            where=f"{CONFIG}: template",
            fix="use an InternVL2 checkpoint with its original config.json",
        )
    text, head = f"{_ORIGINAL_PREFIX}model.", f"{_ORIGINAL_PREFIX}{backbone.head}"
    if file.llm_config.tie_word_embeddings and head not in names:
        head = f"{text}{backbone.embedding}"
    return Description(file, decoder, "llm_config", {"text": text, "head": head})


def _from_transformers(config: Mapping[str, Any], names: Collection[str]) -> Description:
    text = as_form(dict(config), TextName, what="model's configuration", where=CONFIG).text_config
    told = [name for name in text.architectures or () if name in REFUSED_BACKBONES]
    if told:
        raise _unsupported(told, "text_config.architectures", _DECODERS)
    if text.model_type not in _DECODERS:
        raise _unsupported([_REFUSED.get(text.model_type, text.model_type)], "text_config.model_type", _DECODERS)
    file = as_form(dict(config), TransformersFile, what="model's configuration", where=CONFIG)
    ids = {"image_token_id": file.image_token_id, "image_token_index": file.image_token_index}
    stated = {key: number for key, number in ids.items() if number is not None}
    if len(set(stated.values())) > 1:
        raise invalid(f"two ids of the placeholder: {listed(stated)}", "image_token_id")
    layout = dict(_OF_THE_CLASS if any(name.startswith(_CLASS_PREFIXES) for name in names) else _SAVED)
    # The class ties the two matrices unless it is told not to, and keeps both where a file has both: so do we.
    if (file.tie_word_embeddings or file.text_config.tie_word_embeddings) and layout["head"] not in names:
        layout["head"] = f"{layout['text']}embed_tokens.weight"
    return Description(
        ConfigFile(
            llm_config=file.text_config,
            vision_config=_tower(file.vision_config),
            template=TRANSFORMERS_TEMPLATE,
            downsample_ratio=file.downsample_ratio,
            ps_version="v2",
        ),
        _DECODERS[text.model_type],
        "text_config",
        layout,
        next(iter(stated.values()), None),
        file.image_seq_length,
    )


def _tower(tower: TowerConfig) -> VisionConfig:
    return VisionConfig(
        hidden_act=tower.hidden_act,
        hidden_size=tower.hidden_size,
        image_size=_side(tower.image_size, "image_size"),
        intermediate_size=tower.intermediate_size,
        layer_norm_eps=tower.layer_norm_eps,
        norm_type=tower.norm_type,
        num_attention_heads=tower.num_attention_heads,
        num_hidden_layers=tower.num_hidden_layers,
        patch_size=_side(tower.patch_size, "patch_size"),
        qk_normalization=tower.use_qk_norm,
        qkv_bias=tower.attention_bias,
    )


def _side(size: int | list[int], key: str) -> int:
    sides = [size] * 2 if isinstance(size, int) else size
    if len(sides) != 2 or sides[0] != sides[1]:
        raise invalid(f"{key} is {sides}, not one square's height and width", f"vision_config.{key}")
    return sides[0]


def _unsupported(architectures: list[str], key: str, supported: Collection[str]) -> VaExportError:
    reason = next((f": {REFUSED_BACKBONES[name]}" for name in architectures if name in REFUSED_BACKBONES), "")
    return VaExportError(
        f"this model's decoder, {', '.join(architectures)}, is not supported{reason}",
        where=f"{CONFIG}: {key}",
        fix=f"use a checkpoint whose decoder is one of: {', '.join(supported)}",
    )
