"""The published checkpoints' configurations, for planning and for random weights where the Hub is out of reach.

Sources: config.json of Qwen2.5-VL-3B-Instruct (a copy is in sophgo/LLM-TPU); sizes of 7B, 32B and 72B: table 1 of
arXiv 2502.13923 and the decoders of the same sizes, Qwen2.5-7B, -32B and -72B. All share the tower but for its MLP
(3456 wide at 72B and, unconfirmed, at 32B). A checkpoint that is there speaks for itself.
"""

from __future__ import annotations

import copy
from typing import Any

_SHARED: dict[str, Any] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "rope_theta": 1000000.0,
    "use_sliding_window": False,
}
_SHARED_VISION: dict[str, Any] = {
    "depth": 32,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "hidden_act": "silu",
    "hidden_size": 1280,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "tokens_per_second": 2,
    "window_size": 112,
}
# hidden, feed-forward, layers, heads, key/value heads, vocabulary, tied, the tower's feed-forward.
_SIZES: dict[str, tuple[int, int, int, int, int, int, bool, int]] = {
    "Qwen/Qwen2.5-VL-3B-Instruct": (2048, 11008, 36, 16, 2, 151936, True, 3420),
    "Qwen/Qwen2.5-VL-7B-Instruct": (3584, 18944, 28, 28, 4, 152064, False, 3420),
    "Qwen/Qwen2.5-VL-32B-Instruct": (5120, 27648, 64, 40, 8, 152064, False, 3456),
    "Qwen/Qwen2.5-VL-72B-Instruct": (8192, 29568, 80, 64, 8, 152064, False, 3456),
}


def published_names() -> tuple[str, ...]:
    """The hub ids of the checkpoints that are known, smallest first."""
    return tuple(_SIZES)


def published_config(hub_id: str) -> dict[str, Any] | None:
    """What config.json of the checkpoint `hub_id` says, or None where it is not known."""
    if hub_id not in _SIZES:
        return None
    hidden, width, layers, heads, kv_heads, vocabulary, is_tied, tower_width = _SIZES[hub_id]
    return copy.deepcopy(
        {
            **_SHARED,
            "hidden_size": hidden,
            "intermediate_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "vocab_size": vocabulary,
            "tie_word_embeddings": is_tied,
            "vision_config": {**_SHARED_VISION, "intermediate_size": tower_width, "out_hidden_size": hidden},
        }
    )
