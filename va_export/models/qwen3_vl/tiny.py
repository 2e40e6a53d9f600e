"""A small random Qwen3-VL checkpoint in the published layout, for tests and for trying the tool without a download.

`tiny_files` says how weights are drawn. The tokenizer knows the 256 bytes and the prompt's special tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from va_export.models.decoder_config import CONFIG
from va_export.models.patch_prompt import END_OF_TURN, IMAGE_TOKEN, VIDEO_TOKEN
from va_export.models.qwen3_vl.config import spec_from_config
from va_export.models.qwen3_vl.config_file import IMAGE_PREPROCESSOR, VIDEO_PREPROCESSOR
from va_export.models.qwen3_vl.key_map import weight_map
from va_export.models.tiny_files import BYTES, write_byte_tokenizer, write_json, write_weights

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", END_OF_TURN, "<|vision_start|>", "<|vision_end|>", IMAGE_TOKEN, VIDEO_TOKEN
)  # fmt: skip
_IDS = {token: BYTES + place for place, token in enumerate(SPECIAL_TOKENS)}

_CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "model_type": "qwen3_vl",
    "image_token_id": _IDS[IMAGE_TOKEN],
    "video_token_id": _IDS[VIDEO_TOKEN],
    "vision_start_token_id": _IDS["<|vision_start|>"],
    "vision_end_token_id": _IDS["<|vision_end|>"],
    "tie_word_embeddings": False,
    "text_config": {
        "attention_bias": False,
        "bos_token_id": _IDS["<|endoftext|>"],
        "eos_token_id": _IDS[END_OF_TURN],
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 96,
        "intermediate_size": 192,
        "max_position_embeddings": 4096,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [6, 5, 5], "rope_type": "default"},
        "rope_theta": 5000000.0,
        "vocab_size": BYTES + len(SPECIAL_TOKENS),
    },
    "vision_config": {
        "deepstack_visual_indexes": [0, 2],
        "depth": 4,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 64,
        "in_channels": 3,
        "intermediate_size": 96,
        "num_heads": 4,
        "num_position_embeddings": 49,
        "out_hidden_size": 96,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}
_PREPROCESSOR = {
    "size": {"longest_edge": 64 * 32 * 32, "shortest_edge": 4096},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def write_tiny_checkpoint(
    directory: Path,
    seed: int = 0,
    text_config: Mapping[str, Any] | None = None,
    vision_config: Mapping[str, Any] | None = None,
    **config: Any,
) -> Path:
    """Write config.json, model.safetensors (float32, about 2 MB), the preprocessor's settings and tokenizer files;
    returns `directory`.

    Args:
        text_config, vision_config, config: settings that replace the default's.
    """
    directory.mkdir(parents=True, exist_ok=True)
    whole = {
        **_CONFIG,
        **config,
        "text_config": {**_CONFIG["text_config"], **(text_config or {})},
        "vision_config": {**_CONFIG["vision_config"], **(vision_config or {})},
    }
    write_weights(directory, weight_map(spec_from_config(whole)).values(), seed)
    write_json(directory / CONFIG, whole)
    for name in (IMAGE_PREPROCESSOR, VIDEO_PREPROCESSOR):
        write_json(directory / name, _PREPROCESSOR)
    write_byte_tokenizer(directory, SPECIAL_TOKENS, bos_token=None, eos_token=END_OF_TURN)
    return directory
