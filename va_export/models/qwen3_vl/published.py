"""The published checkpoints' configurations, for planning and for random weights where the Hub is out of reach.

Sources: the defaults of transformers' `Qwen3VLConfig` (8B's tower, vocabulary, ids, sections of the positions);
decoders are those of Qwen3 of the same sizes (2B: 1.7B), arXiv 2505.09388; 4B's tower as amdrajeevp1/onnxruntime-genai
describes it, and 2B's taken to be the same. No config.json was at hand: `max_position_embeddings`, `rope_theta`, which
of them are tied and 2B's tower are unconfirmed. A checkpoint that is there speaks for itself.
"""

from __future__ import annotations

import copy
from typing import Any

_SHARED: dict[str, Any] = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "model_type": "qwen3_vl",
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
_SHARED_TEXT: dict[str, Any] = {
    "attention_bias": False,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 262144,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
    "rope_theta": 5000000.0,
    "vocab_size": 151936,
}
_SHARED_VISION: dict[str, Any] = {
    "hidden_act": "gelu_pytorch_tanh",
    "in_channels": 3,
    "num_heads": 16,
    "num_position_embeddings": 2304,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_SMALL_TOWER = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
_TOWER = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}
# hidden, feed-forward, layers, heads, tied, tower.
_SIZES: dict[str, tuple[int, int, int, int, bool, dict[str, Any]]] = {
    "Qwen/Qwen3-VL-2B-Instruct": (2048, 6144, 28, 16, True, _SMALL_TOWER),
    "Qwen/Qwen3-VL-4B-Instruct": (2560, 9728, 36, 32, True, _SMALL_TOWER),
    "Qwen/Qwen3-VL-8B-Instruct": (4096, 12288, 36, 32, False, _TOWER),
    "Qwen/Qwen3-VL-32B-Instruct": (5120, 25600, 64, 64, False, _TOWER),
}


def published_names() -> tuple[str, ...]:
    """The hub ids of the checkpoints that are known, smallest first."""
    return tuple(_SIZES)


def published_config(hub_id: str) -> dict[str, Any] | None:
    """What config.json of the checkpoint `hub_id` says, or None where it is not known."""
    if hub_id not in _SIZES:
        return None
    hidden, width, layers, heads, is_tied, tower = _SIZES[hub_id]
    return copy.deepcopy(
        {
            **_SHARED,
            "tie_word_embeddings": is_tied,
            "text_config": {
                **_SHARED_TEXT,
                "hidden_size": hidden,
                "intermediate_size": width,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
            },
            "vision_config": {**_SHARED_VISION, **tower, "out_hidden_size": hidden},
        }
    )
