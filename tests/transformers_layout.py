"""A checkpoint in OpenGVLab's layout, written again in transformers'.

The names are those of transformers' conversion script and of its class: `saved` as transformers 4.52 and later write
them, with 4's words in config.json; `class` as the class has them, with 5's words.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

LAYOUTS = ("saved", "class")
_RENAMED = (
    (r"^vision_model\.", "vision_tower."),
    (r"^(vision_tower\.encoder\.)layers\.", r"\1layer."),
    (r"class_embedding$", "cls_token"),
    (r"position_embedding$", "position_embeddings"),
    (r"patch_embedding\.", "patch_embeddings.projection."),
    (r"\.attn\.proj\.", ".attention.projection_layer."),
    (r"\.attn\.", ".attention."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.ls([12])$", r".lambda_\1"),
    (r"^mlp1\.0\.", "multi_modal_projector.layer_norm."),
    (r"^mlp1\.1\.", "multi_modal_projector.linear_1."),
    (r"^mlp1\.3\.", "multi_modal_projector.linear_2."),
    # InternLM2 becomes a Llama
    (r"tok_embeddings", "embed_tokens"),
    (r"\.attention\.wo\.", ".self_attn.o_proj."),
    (r"\.feed_forward\.w1\.", ".mlp.gate_proj."),
    (r"\.feed_forward\.w2\.", ".mlp.down_proj."),
    (r"\.feed_forward\.w3\.", ".mlp.up_proj."),
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
    (r"^language_model\.output\.", "language_model.lm_head."),
)
_OF_THE_CLASS = (
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^language_model\.model\.", "model.language_model."),
    (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
)
_MODEL_TYPES = {"InternLM2ForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}


def write_in_transformers_layout(source: Path, target: Path, layout: str, image_token_id: int) -> Path:
    """Write what `source` holds into `target`, files that are neither configuration nor weights as they are."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            shutil.copy(path, target)
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(rewritten_config(config, layout, image_token_id), indent=1))
    weights = load_file(source / "model.safetensors")
    parts = {new: part for name in weights for new, part in _parts(name, weights[name], config["llm_config"])}
    renames = (*_RENAMED, *(_OF_THE_CLASS if layout == "class" else ()))
    save_file(
        {_renamed(name, renames): part.contiguous() for name, part in parts.items()}, target / "model.safetensors"
    )
    return target


def rewritten_config(config: dict[str, Any], layout: str, image_token_id: int) -> dict[str, Any]:
    """The same model's config.json in transformers' layout."""
    llm, vit = dict(config["llm_config"]), config["vision_config"]
    scaling, theta = llm.pop("rope_scaling", None), llm.pop("rope_theta")
    llm["model_type"] = _MODEL_TYPES[llm["architectures"][0]]
    llm.pop("torch_dtype", None)
    size, patch = vit["image_size"], vit["patch_size"]
    tower = {
        "model_type": "internvl_vision",
        "attention_bias": vit["qkv_bias"],
        "use_qk_norm": vit["qk_normalization"],
        "image_size": [size, size],
        "patch_size": [patch, patch],
        "use_absolute_position_embeddings": True,
        "use_mask_token": False,
        "use_mean_pooling": True,
    }
    alike = (
        *("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_channels"),
        *("hidden_act", "layer_norm_eps", "norm_type"),
    )
    if layout == "class":
        kind = (scaling or {}).get("type", "default")
        llm |= {"dtype": "float32", "rope_parameters": {"rope_theta": theta, "rope_type": kind, **(scaling or {})}}
        top: dict[str, Any] = {"dtype": "float32", "image_token_id": image_token_id}
        if not llm.get("tie_word_embeddings"):
            top["tie_word_embeddings"] = False
    else:
        llm |= {"torch_dtype": "float32", "rope_theta": theta, "rope_scaling": scaling}
        top = {"torch_dtype": "float32", "image_token_index": image_token_id}  # the class's default ties: left out
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "downsample_ratio": config["downsample_ratio"],
        "image_seq_length": round((size // patch * config["downsample_ratio"]) ** 2),
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "text_config": llm,
        "vision_config": tower | {key: vit[key] for key in alike},
        **top,
    }


def _parts(name: str, tensor: torch.Tensor, llm: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """A tensor, or the three that it packs."""
    if ".attn.qkv." in name:
        for part, rows in zip("qkv", tensor.chunk(3), strict=True):
            yield name.replace(".qkv.", f".{part}_proj."), rows
    elif ".attention.wqkv." in name:
        queries = llm["num_attention_heads"] // llm["num_key_value_heads"]
        width = llm["hidden_size"] // llm["num_attention_heads"]
        groups = tensor.unflatten(0, (-1, queries + 2, width))
        for part, heads in zip("qkv", (groups[:, :queries], groups[:, -2], groups[:, -1]), strict=True):
            rows = heads.reshape(-1, *tensor.shape[1:])
            yield name.replace(".attention.wqkv.", f".self_attn.{part}_proj."), rows
    else:
        yield name, tensor


def _renamed(name: str, renames: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name
