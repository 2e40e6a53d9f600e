"""A small random LLaVA-Video checkpoint in the original layout, for tests and for trying the tool without a download.

`tiny_files` says how weights are drawn. The tokenizer knows the 256 bytes and the prompt's special tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from va_export.models.decoder_config import CONFIG
from va_export.models.llava.config import spec_from_config
from va_export.models.llava.key_map import weight_map
from va_export.models.llava.prompt import END_OF_TURN
from va_export.models.tiny_files import BYTES, write_byte_tokenizer, write_json, write_weights

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", END_OF_TURN)

_TOWER = {
    "hidden_size": 64,
    "image_size": 98,
    "intermediate_size": 96,
    "num_attention_heads": 16,
    "num_hidden_layers": 2,
    "patch_size": 14,
}
_CONFIG: dict[str, Any] = {
    "architectures": ["LlavaQwenForCausalLM"],
    "model_type": "llava",
    "torch_dtype": "float32",
    "eos_token_id": BYTES + SPECIAL_TOKENS.index(END_OF_TURN),
    "hidden_act": "silu",
    "hidden_size": 128,
    "intermediate_size": 224,
    "max_position_embeddings": 4096,
    "mm_newline_position": "grid",
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_type": "mlp2x_gelu",
    "mm_spatial_pool_mode": "bilinear",
    "mm_vision_select_layer": -2,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": BYTES + len(SPECIAL_TOKENS),
}


def write_tiny_checkpoint(directory: Path, seed: int = 0) -> Path:
    """Write config.json (which says nothing of the tower, as the published ones), model.safetensors (float32, about
    2 MB) and tokenizer files; returns `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    sources = weight_map(spec_from_config({**_CONFIG, "vision_config": _TOWER}))
    write_weights(directory, sources.values(), seed)
    write_json(directory / CONFIG, _CONFIG)
    write_byte_tokenizer(directory, SPECIAL_TOKENS, bos_token=None, eos_token=END_OF_TURN)
    return directory
