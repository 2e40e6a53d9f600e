"""A small random LLaVA-Video checkpoint in the original layout, for tests and for trying the tool without a download.

Weights are uniform numbers from NumPy's PCG64, scaled so that activations keep their size and attention is far from
uniform. The tokenizer knows the 256 bytes and the prompt's special tokens.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from va_export.models.decoder_config import CONFIG
from va_export.models.family import WeightSource
from va_export.models.llava.config import spec_from_config
from va_export.models.llava.key_map import weight_map
from va_export.models.llava.prompt import END_OF_TURN
from va_export.models.tiny_files import BYTES, uniform, write_byte_tokenizer, write_json

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
    by_name = {source.checkpoint_name: source for source in sources.values()}
    generator = np.random.Generator(np.random.PCG64(seed))
    weights = {name: _random_weight(by_name[name], generator) for name in sorted(by_name)}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    write_json(directory / CONFIG, _CONFIG)
    write_byte_tokenizer(directory, SPECIAL_TOKENS, bos_token=None, eos_token=END_OF_TURN)
    return directory


def _random_weight(source: WeightSource, generator: np.random.Generator) -> npt.NDArray[np.float32]:
    """Uniform values around `centre` with standard deviation `spread`, both by the weight's role."""
    name, shape = source.checkpoint_name, source.checkpoint_shape
    centre, spread = 0.0, 1.0 / math.sqrt(math.prod(shape[1:]) or 1)  # keeps a unit variance through a linear layer
    if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")):
        centre, spread = 1.0, 0.1
    elif name.endswith("bias"):
        spread = 0.1
    elif name.endswith("position_embedding.weight"):
        spread = 0.3
    elif name.endswith(("embed_tokens.weight", "image_newline")):
        spread = 1.0
    elif name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
        spread *= 1.6  # logits of a few units, so that attention picks keys out
    elif name.endswith("lm_head.weight"):
        spread *= 2.0  # probabilities far from uniform, no ties between greedy tokens
    return uniform(generator, shape, centre, spread)
