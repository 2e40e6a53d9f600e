"""Where Qwen3-VL's weights lie in a checkpoint, which names them as Hugging Face's classes do."""

from __future__ import annotations

from va_export.models.decoder_weights import TEXT, llama_weights
from va_export.models.family import ModelSpec, WeightSource
from va_export.models.qwen3_vl.config import DeepPatchShape, deep_patches

_VISION = "model.visual."


def weight_map(spec: ModelSpec) -> dict[str, WeightSource]:
    """Hugging Face parameter name → source, for every parameter of the model that `spec` describes."""
    biases = ("q", "k", "v", "o") if spec.hf_config["text_config"]["attention_bias"] else ()
    text = llama_weights(spec.text, TEXT, spec.names["head"], biases, norms=("q", "k"))
    vision = deep_patches(spec)
    merged = vision.hidden_size * vision.merge_size**2
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.bias": (vision.hidden_size,),
        "pos_embed.weight": (vision.position_side**2, vision.hidden_size),
        **_merger("merger.", vision.hidden_size, merged, spec.text.hidden_size),
    }
    for place in range(len(vision.deep_blocks)):
        shapes |= _merger(f"deepstack_merger_list.{place}.", merged, merged, spec.text.hidden_size)
    for block in range(vision.num_layers):
        shapes |= {f"blocks.{block}.{name}": shape for name, shape in _block(vision).items()}
    tower = {f"{_VISION}{name}": WeightSource(f"{_VISION}{name}", shape) for name, shape in shapes.items()}
    kernel = (vision.hidden_size, 3, vision.frames_per_grid, vision.patch_size, vision.patch_size)
    name = f"{_VISION}patch_embed.proj.weight"  # a convolution over patches that lie side by side: a linear layer
    return tower | {name: WeightSource(name, kernel, is_joined=True)} | text


def _merger(prefix: str, normed: int, merged: int, out_hidden_size: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}norm.weight": (normed,),
        f"{prefix}norm.bias": (normed,),
        f"{prefix}linear_fc1.weight": (merged, merged),
        f"{prefix}linear_fc1.bias": (merged,),
        f"{prefix}linear_fc2.weight": (out_hidden_size, merged),
        f"{prefix}linear_fc2.bias": (out_hidden_size,),
    }


def _block(vision: DeepPatchShape) -> dict[str, tuple[int, ...]]:
    hidden, width = vision.hidden_size, vision.intermediate_size
    return {
        **{f"norm{number}.{part}": (hidden,) for number in (1, 2) for part in ("weight", "bias")},
        "attn.qkv.weight": (3 * hidden, hidden),
        "attn.qkv.bias": (3 * hidden,),
        "attn.proj.weight": (hidden, hidden),
        "attn.proj.bias": (hidden,),
        "mlp.linear_fc1.weight": (width, hidden),
        "mlp.linear_fc1.bias": (width,),
        "mlp.linear_fc2.weight": (hidden, width),
        "mlp.linear_fc2.bias": (hidden,),
    }
