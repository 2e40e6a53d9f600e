"""Where the weights of a decoder lie that a checkpoint names as Hugging Face's Llama does, whatever stands before."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from va_export.models.family import TextShape, WeightSource

TEXT = "model.language_model."  # what all our models call their decoder
HEAD = "lm_head.weight"


def llama_weights(
    text: TextShape, source: str, head: str, biases: Collection[str] = (), norms: Collection[str] = ()
) -> dict[str, WeightSource]:
    """Sources of the text model's parameters and of the output head.

    Args:
        source: what stands before `layers` in the checkpoint.
        head: the checkpoint's name of the output matrix; the embedding's where they are tied.
        biases: which of the attention's projections (q, k, v, o) have one.
        norms: which of them (q, k) have a norm on each head.
    """
    hidden, width = text.hidden_size, text.intermediate_size
    rows = {"q": text.num_heads * text.head_dim, "k": text.num_kv_heads * text.head_dim}
    rows["v"] = rows["k"]
    layer: dict[str, tuple[int, ...]] = {
        **{f"self_attn.{part}_proj.weight": (count, hidden) for part, count in rows.items()},
        **{f"self_attn.{part}_proj.bias": (rows.get(part, hidden),) for part in biases},
        **{f"self_attn.{part}_norm.weight": (text.head_dim,) for part in norms},
        "self_attn.o_proj.weight": (hidden, rows["q"]),
        "mlp.gate_proj.weight": (width, hidden),
        "mlp.up_proj.weight": (width, hidden),
        "mlp.down_proj.weight": (hidden, width),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    return named_alike(text, source, head, layer)


def named_alike(
    text: TextShape, source: str, head: str, layer: Mapping[str, tuple[int, ...]]
) -> dict[str, WeightSource]:
    """Sources of a decoder whose checkpoint has Hugging Face's names behind `source`.

    Args:
        layer: shapes of one layer's parameters.
    """
    hidden, vocab = text.hidden_size, text.vocab_size

    def sources(shapes: Mapping[str, tuple[int, ...]], prefix: str = "") -> dict[str, WeightSource]:
        return {
            f"{TEXT}{prefix}{name}": WeightSource(f"{source}{prefix}{name}", shape) for name, shape in shapes.items()
        }

    outside = sources({"embed_tokens.weight": (vocab, hidden), "norm.weight": (hidden,)})
    outside[HEAD] = WeightSource(head, (vocab, hidden))
    return placed(outside, [sources(layer, f"layers.{index}.") for index in range(text.num_layers)])


def placed(outside: Mapping[str, WeightSource], layers: list[dict[str, WeightSource]]) -> dict[str, WeightSource]:
    """The weights outside of the layers and those of each layer, told which component and layer they belong to."""
    told = {
        name: replace(source, component="embedding" if name == f"{TEXT}embed_tokens.weight" else "decoder")
        for name, source in outside.items()
    }
    return told | {
        name: replace(source, component="decoder", layer=index)
        for index, layer in enumerate(layers)
        for name, source in layer.items()
    }
