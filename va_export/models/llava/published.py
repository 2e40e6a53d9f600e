"""The published checkpoints' configurations, for planning and for random weights where the Hub is out of reach.

Sources: sizes of the decoders from configurations of models derived from these (nkkbr/ViCA-ScanNet-80p, RSUniVLM) and
of Qwen2-72B; newline and pooling of LLaVA-Video from lmms-lab's commit 0cf6736 and its siblings (the pooling of
LLaVA-Video-7B is unconfirmed). A checkpoint that is there speaks for itself.
"""

from __future__ import annotations

import copy
from typing import Any

_SHARED: dict[str, Any] = {
    "architectures": ["LlavaQwenForCausalLM"],
    "model_type": "llava",
    "hidden_act": "silu",
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "max_position_embeddings": 32768,
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_spatial_pool_mode": "bilinear",
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "use_sliding_window": False,
}
# hidden, feed-forward, layers, heads, key/value heads, vocabulary, tied.
_TEXT: dict[str, tuple[int, int, int, int, int, int, bool]] = {
    "0.5b": (896, 4864, 24, 14, 2, 151936, True),
    "7b": (3584, 18944, 28, 28, 4, 152064, False),
    "72b": (8192, 29568, 80, 64, 8, 152064, False),
}
# Decoder, newline.
_MODELS = {
    "lmms-lab/llava-onevision-qwen2-0.5b-ov": ("0.5b", "one_token"),
    "lmms-lab/llava-onevision-qwen2-7b-ov": ("7b", "one_token"),
    "lmms-lab/LLaVA-Video-7B-Qwen2": ("7b", "grid"),
    "lmms-lab/llava-onevision-qwen2-72b-ov": ("72b", "one_token"),
    "lmms-lab/LLaVA-Video-72B-Qwen2": ("72b", "grid"),
}


def published_names() -> tuple[str, ...]:
    """The hub ids of the checkpoints that are known, smallest first."""
    return tuple(_MODELS)


def published_config(hub_id: str) -> dict[str, Any] | None:
    """What config.json of the checkpoint `hub_id` says, or None where it is not known."""
    if hub_id not in _MODELS:
        return None
    size, newline = _MODELS[hub_id]
    hidden, width, layers, heads, kv_heads, vocabulary, is_tied = _TEXT[size]
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
            "mm_newline_position": newline,
        }
    )
