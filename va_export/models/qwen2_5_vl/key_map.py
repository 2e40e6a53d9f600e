"""Where Qwen2.5-VL's weights lie in a checkpoint, as a table of Hugging Face parameter names."""

from __future__ import annotations

from va_export.models.decoder_weights import llama_weights
from va_export.models.family import ModelSpec, WeightSource
from va_export.models.patch_shape import PatchShape, patches

_HF_VISION = "model.visual."


def weight_map(spec: ModelSpec) -> dict[str, WeightSource]:
    """Hugging Face parameter name → source, for every parameter of the model that `spec` describes."""
    names = spec.names
    text = llama_weights(spec.text, names["text"], names["head"], biases=("q", "k", "v"))
    vision = patches(spec)
    shapes = _tower(vision, spec.text.hidden_size)
    for block in range(vision.num_layers):
        shapes |= {f"blocks.{block}.{name}": shape for name, shape in _block(vision).items()}
    tower = {f"{_HF_VISION}{name}": WeightSource(f"{names['vision']}{name}", shape) for name, shape in shapes.items()}
    kernel = (vision.hidden_size, 3, vision.frames_per_grid, vision.patch_size, vision.patch_size)
    name = "patch_embed.proj.weight"  # a convolution over patches that lie side by side: a linear layer
    tower[f"{_HF_VISION}{name}"] = WeightSource(f"{names['vision']}{name}", kernel, is_joined=True)
    return tower | text


def _tower(vision: PatchShape, out_hidden_size: int) -> dict[str, tuple[int, ...]]:
    merged = vision.hidden_size * vision.merge_size**2
    return {
        "merger.ln_q.weight": (vision.hidden_size,),
        "merger.mlp.0.weight": (merged, merged),
        "merger.mlp.0.bias": (merged,),
        "merger.mlp.2.weight": (out_hidden_size, merged),
        "merger.mlp.2.bias": (out_hidden_size,),
    }


def _block(vision: PatchShape) -> dict[str, tuple[int, ...]]:
    hidden, width = vision.hidden_size, vision.intermediate_size
    return {
        "norm1.weight": (hidden,),
        "norm2.weight": (hidden,),
        "attn.qkv.weight": (3 * hidden, hidden),
        "attn.qkv.bias": (3 * hidden,),
        "attn.proj.weight": (hidden, hidden),
        "attn.proj.bias": (hidden,),
        **{f"mlp.{part}_proj.weight": (width, hidden) for part in ("gate", "up")},
        **{f"mlp.{part}_proj.bias": (width,) for part in ("gate", "up")},
        "mlp.down_proj.weight": (hidden, width),
        "mlp.down_proj.bias": (hidden,),
    }
