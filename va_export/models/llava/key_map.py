"""Where LLaVA's weights lie in a checkpoint, as a table of Hugging Face parameter names."""

from __future__ import annotations

from va_export.models.decoder_weights import llama_weights
from va_export.models.family import ModelSpec, WeightSource
from va_export.models.llava.pooled import PooledShape, pooled

_HF_VISION, _HF_PROJECTOR, _HF_NEWLINE = "model.vision_tower.", "model.multi_modal_projector.", "model.image_newline"


def weight_map(spec: ModelSpec) -> dict[str, WeightSource]:
    """Hugging Face parameter name → source, for every parameter of the model that `spec` describes."""
    names, vision, hidden = spec.names, pooled(spec), spec.text.hidden_size
    shapes = _embeddings(vision)
    for layer in range(vision.num_layers):
        shapes |= {f"encoder.layers.{layer}.{name}": shape for name, shape in _layer(vision).items()}
    weights = {f"{_HF_VISION}{name}": WeightSource(f"{names['vision']}{name}", shape) for name, shape in shapes.items()}
    for part, columns in (("first", vision.hidden_size), ("second", hidden)):
        ours = f"{_HF_PROJECTOR}linear_{1 if part == 'first' else 2}."
        theirs = f"{names['projector']}{names[part]}."
        weights[f"{ours}weight"] = WeightSource(f"{theirs}weight", (hidden, columns))
        weights[f"{ours}bias"] = WeightSource(f"{theirs}bias", (hidden,))
    if vision.newline != "no_token":
        weights[_HF_NEWLINE] = WeightSource(names["newline"], (hidden,))
    return weights | llama_weights(spec.text, names["text"], names["head"], biases=("q", "k", "v"))


def _embeddings(vision: PooledShape) -> dict[str, tuple[int, ...]]:
    hidden = vision.hidden_size
    return {
        "embeddings.patch_embedding.weight": (hidden, 3, vision.patch_size, vision.patch_size),
        "embeddings.patch_embedding.bias": (hidden,),
        "embeddings.position_embedding.weight": (vision.side**2, hidden),
    }


def _layer(vision: PooledShape) -> dict[str, tuple[int, ...]]:
    hidden, width = vision.hidden_size, vision.intermediate_size
    return {
        **{f"layer_norm{number}.{part}": (hidden,) for number in (1, 2) for part in ("weight", "bias")},
        **{f"self_attn.{part}_proj.weight": (hidden, hidden) for part in ("q", "k", "v", "out")},
        **{f"self_attn.{part}_proj.bias": (hidden,) for part in ("q", "k", "v", "out")},
        "mlp.fc1.weight": (width, hidden),
        "mlp.fc1.bias": (width,),
        "mlp.fc2.weight": (hidden, width),
        "mlp.fc2.bias": (hidden,),
    }
