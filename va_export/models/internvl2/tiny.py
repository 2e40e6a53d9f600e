"""A small random InternVL2 checkpoint in the original layout, for tests and for trying the tool without a download.

Weights are uniform numbers from NumPy's PCG64, scaled so that activations keep their size, attention is far from
uniform and frames of a real video give different visual tokens. The tokenizer knows the 256 bytes and the prompt's
special tokens, so any text can be asked and any output decoded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from va_export.models.family import Choices
from va_export.models.internvl2.config import spec_from_config
from va_export.models.internvl2.key_map import weight_map
from va_export.models.internvl2.prompt import END_OF_TURN, IMAGE_TOKEN
from va_export.models.tiny_files import BYTES, write_byte_tokenizer, write_json, write_weights

SPECIAL_TOKENS = ("<s>", "</s>", "<|im_start|>", END_OF_TURN, "<img>", "</img>", IMAGE_TOKEN)
_CONFIG: dict[str, Any] = {
    "architectures": ["InternVLChatModel"],
    "model_type": "internvl_chat",
    "template": "internlm2-chat",
    "downsample_ratio": 0.5,
    "force_image_size": 112,
    "ps_version": "v2",
    "select_layer": -1,
    "torch_dtype": "float32",
    "llm_config": {
        "architectures": ["InternLM2ForCausalLM"],
        "model_type": "internlm2",
        "bias": False,
        "bos_token_id": BYTES,
        "eos_token_id": BYTES + 1,
        "hidden_act": "silu",
        "hidden_size": 128,
        "intermediate_size": 256,
        "max_position_embeddings": 4096,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 2.0, "type": "dynamic"},
        "rope_theta": 1000000,
        "tie_word_embeddings": False,
        "vocab_size": BYTES + len(SPECIAL_TOKENS),
    },
    "vision_config": {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "hidden_act": "gelu",
        "hidden_size": 64,
        "image_size": 112,
        "intermediate_size": 128,
        "layer_norm_eps": 1e-06,
        "norm_type": "layer_norm",
        "num_attention_heads": 4,
        "num_channels": 3,
        "num_hidden_layers": 2,
        "patch_size": 14,
        "qk_normalization": False,
        "qkv_bias": True,
    },
}


def write_tiny_checkpoint(
    directory: Path,
    seed: int = 0,
    llm_config: Mapping[str, Any] | None = None,
    vision_config: Mapping[str, Any] | None = None,
) -> Path:
    """Write config.json, model.safetensors (float32, about 2 MB) and tokenizer files; returns `directory`.

    Args:
        llm_config, vision_config: settings that replace the default's: another decoder, another vision tower.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        **_CONFIG,
        "llm_config": {**_CONFIG["llm_config"], **(llm_config or {})},
        "vision_config": {**_CONFIG["vision_config"], **(vision_config or {})},
    }
    spec = spec_from_config(config, Choices(image_token_id=BYTES + SPECIAL_TOKENS.index(IMAGE_TOKEN)))
    write_weights(directory, weight_map(spec).values(), seed)
    write_json(directory / "config.json", config)
    write_byte_tokenizer(directory, SPECIAL_TOKENS, bos_token="<s>", eos_token="</s>")
    return directory
