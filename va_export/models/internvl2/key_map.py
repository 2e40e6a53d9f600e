"""Where InternVL2's weights lie in a checkpoint, as a table of Hugging Face parameter names."""

from __future__ import annotations

from va_export.models.family import ModelSpec, RowBlocks, WeightSource
from va_export.models.internvl2.layouts import is_original
from va_export.models.internvl2.text_backbones import TEXT_BACKBONES
from va_export.models.internvl2.tiles import tiles

_CHECKPOINT_VISION = "vision_model."
_HF_VISION = "model.vision_tower."
_HF_PROJECTOR = "model.multi_modal_projector."


def weight_map(spec: ModelSpec) -> dict[str, WeightSource]:
    """Hugging Face parameter name → source, for every parameter of the model that `spec` describes."""
    backbone = TEXT_BACKBONES[spec.text_architecture]
    bias = bool(spec.hf_config["text_config"].get("attention_bias", False))
    weights = _vision_weights(spec) | _projector_weights(spec)
    if not is_original(spec):
        weights = {name: _named_alike(spec, name, source) for name, source in weights.items()}
    return weights | backbone.weight_map(spec.text, bias, spec.names)


def _named_alike(spec: ModelSpec, name: str, source: WeightSource) -> WeightSource:
    """The same parameter in transformers' layout: a tensor of its own, under the class's name."""
    return WeightSource(f"{spec.names['tower']}{name.removeprefix('model.')}", source.shape)


def _vision_weights(spec: ModelSpec) -> dict[str, WeightSource]:
    """InternViT: its `qkv` holds all queries, then all keys, then all values."""
    vision = tiles(spec)
    hidden, patch = vision.hidden_size, vision.patch_size
    positions = (vision.image_size // patch) ** 2 + 1
    source, target = f"{_CHECKPOINT_VISION}embeddings.", f"{_HF_VISION}embeddings."
    weights = {
        f"{target}cls_token": WeightSource(f"{source}class_embedding", (1, 1, hidden)),
        f"{target}position_embeddings": WeightSource(f"{source}position_embedding", (1, positions, hidden)),
        f"{target}patch_embeddings.projection.weight": WeightSource(
            f"{source}patch_embedding.weight", (hidden, 3, patch, patch)
        ),
        f"{target}patch_embeddings.projection.bias": WeightSource(f"{source}patch_embedding.bias", (hidden,)),
    }
    for layer in range(vision.num_layers):
        weights |= _vision_layer(spec, layer)
    return weights


def _vision_layer(spec: ModelSpec, layer: int) -> dict[str, WeightSource]:
    source, target = f"{_CHECKPOINT_VISION}encoder.layers.{layer}.", f"{_HF_VISION}encoder.layer.{layer}."
    hidden, width = spec.vision.hidden_size, spec.vision.intermediate_size
    config = spec.hf_config["vision_config"]
    weights = {
        f"{target}attention.projection_layer.weight": WeightSource(f"{source}attn.proj.weight", (hidden, hidden)),
        f"{target}attention.projection_layer.bias": WeightSource(f"{source}attn.proj.bias", (hidden,)),
        f"{target}mlp.fc1.weight": WeightSource(f"{source}mlp.fc1.weight", (width, hidden)),
        f"{target}mlp.fc1.bias": WeightSource(f"{source}mlp.fc1.bias", (width,)),
        f"{target}mlp.fc2.weight": WeightSource(f"{source}mlp.fc2.weight", (hidden, width)),
        f"{target}mlp.fc2.bias": WeightSource(f"{source}mlp.fc2.bias", (hidden,)),
        f"{target}layernorm_before.weight": WeightSource(f"{source}norm1.weight", (hidden,)),
        f"{target}layernorm_after.weight": WeightSource(f"{source}norm2.weight", (hidden,)),
        f"{target}lambda_1": WeightSource(f"{source}ls1", (hidden,)),
        f"{target}lambda_2": WeightSource(f"{source}ls2", (hidden,)),
    }
    if config["norm_type"] == "layer_norm":
        weights[f"{target}layernorm_before.bias"] = WeightSource(f"{source}norm1.bias", (hidden,))
        weights[f"{target}layernorm_after.bias"] = WeightSource(f"{source}norm2.bias", (hidden,))
    if config["use_qk_norm"]:
        weights[f"{target}attention.q_norm.weight"] = WeightSource(f"{source}attn.q_norm.weight", (hidden,))
        weights[f"{target}attention.k_norm.weight"] = WeightSource(f"{source}attn.k_norm.weight", (hidden,))
    for block, part in enumerate("qkv"):
        blocks = RowBlocks(1, 3, hidden, block, block + 1)
        weights[f"{target}attention.{part}_proj.weight"] = WeightSource(
            f"{source}attn.qkv.weight", (3 * hidden, hidden), blocks
        )
        if config["attention_bias"]:
            weights[f"{target}attention.{part}_proj.bias"] = WeightSource(
                f"{source}attn.qkv.bias", (3 * hidden,), blocks
            )
    return weights


def _projector_weights(spec: ModelSpec) -> dict[str, WeightSource]:
    """`mlp1`: layer norm, linear, GELU, linear; its input is the pixels that one token gathers."""
    hidden = spec.text.hidden_size
    gathered = spec.vision.hidden_size * round(1 / spec.hf_config["downsample_ratio"]) ** 2
    return {
        f"{_HF_PROJECTOR}layer_norm.weight": WeightSource("mlp1.0.weight", (gathered,)),
        f"{_HF_PROJECTOR}layer_norm.bias": WeightSource("mlp1.0.bias", (gathered,)),
        f"{_HF_PROJECTOR}linear_1.weight": WeightSource("mlp1.1.weight", (hidden, gathered)),
        f"{_HF_PROJECTOR}linear_1.bias": WeightSource("mlp1.1.bias", (hidden,)),
        f"{_HF_PROJECTOR}linear_2.weight": WeightSource("mlp1.3.weight", (hidden, hidden)),
        f"{_HF_PROJECTOR}linear_2.bias": WeightSource("mlp1.3.bias", (hidden,)),
    }
