"""A small random Qwen2.5-VL checkpoint in the published layout, for tests and for trying the tool without a download.

`tiny_files` says how weights are drawn. The tokenizer knows the 256 bytes and the prompt's special tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from va_export.models.decoder_config import CONFIG
from va_export.models.patch_prompt import END_OF_TURN, IMAGE_TOKEN, VIDEO_TOKEN
from va_export.models.qwen2_5_vl.config import spec_from_config
from va_export.models.qwen2_5_vl.config_file import PREPROCESSOR
from va_export.models.qwen2_5_vl.key_map import weight_map
from va_export.models.tiny_files import BYTES, write_byte_tokenizer, write_json, write_weights

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", END_OF_TURN, "<|vision_start|>", "<|vision_end|>", IMAGE_TOKEN, VIDEO_TOKEN
)  # fmt: skip
_IDS = {token: BYTES + place for place, token in enumerate(SPECIAL_TOKENS)}

_CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "torch_dtype": "float32",
    "bos_token_id": _IDS["<|endoftext|>"],
    "eos_token_id": _IDS[END_OF_TURN],
    "vision_start_token_id": _IDS["<|vision_start|>"],
    "vision_end_token_id": _IDS["<|vision_end|>"],
    "image_token_id": _IDS[IMAGE_TOKEN],
    "video_token_id": _IDS[VIDEO_TOKEN],
    "hidden_act": "silu",
    "hidden_size": 128,
    "intermediate_size": 256,
    "max_position_embeddings": 4096,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": BYTES + len(SPECIAL_TOKENS),
    "vision_config": {
        "depth": 3,
        "fullatt_block_indexes": [1],
        "hidden_act": "silu",
        "hidden_size": 64,
        "in_chans": 3,
        "intermediate_size": 96,
        "num_heads": 4,
        "out_hidden_size": 128,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
    },
}
_PREPROCESSOR = {
    "min_pixels": 3136,
    "max_pixels": 64 * 28 * 28,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def write_tiny_checkpoint(
    directory: Path,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    vision_config: Mapping[str, Any] | None = None,
) -> Path:
    """Write config.json, model.safetensors (float32, about 2 MB), the preprocessor's settings and tokenizer files;
    returns `directory`.

    Args:
        config, vision_config: settings that replace the default's.
    """
    directory.mkdir(parents=True, exist_ok=True)
    whole = {**_CONFIG, **(config or {}), "vision_config": {**_CONFIG["vision_config"], **(vision_config or {})}}
    write_weights(directory, weight_map(spec_from_config(whole)).values(), seed)
    write_json(directory / CONFIG, whole)
    write_json(directory / PREPROCESSOR, _PREPROCESSOR)
    write_byte_tokenizer(directory, SPECIAL_TOKENS, bos_token=None, eos_token=END_OF_TURN)
    return directory
