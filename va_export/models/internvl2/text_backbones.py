"""The decoders that InternVL2 comes with: one row a decoder.

A row says which Hugging Face text model computes the same function and where its weights lie in the checkpoint.
InternLM2 (the 2B, 8B and 26B models) is Llama with its query, key and value projections packed into one matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from va_export.models.family import RowBlocks, TextShape, WeightSource

_CHECKPOINT = "language_model."
_HF_TEXT = "model.language_model."


@dataclass(frozen=True)
class KnownTokens:
    """Token ids of the published checkpoints with one vocabulary, for directories that carry no tokenizer."""

    image_token_id: int
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class TextBackbone:
    """One decoder.

    Attributes:
        hf_model_type: the Hugging Face text model that computes the same.
        prompt_templates: chat templates that its checkpoints use.
        known_tokens: vocabulary size → ids in the published checkpoints.
        weight_map: (shape, biases present) → sources of the text model's parameters and of the output head.
    """

    hf_model_type: str
    prompt_templates: tuple[str, ...]
    known_tokens: Mapping[int, KnownTokens]
    weight_map: Callable[[TextShape, bool], dict[str, WeightSource]]


def internlm2_weights(text: TextShape, bias: bool) -> dict[str, WeightSource]:
    """InternLM2 → Llama.

    `wqkv` holds, for every key/value head, the rows of its query heads, then its key, then its value; `w1`, `w3`, `w2`
    are gate, up and down.
    """
    hidden, vocab = text.hidden_size, text.vocab_size
    weights = {
        f"{_HF_TEXT}embed_tokens.weight": WeightSource(f"{_CHECKPOINT}model.tok_embeddings.weight", (vocab, hidden)),
        f"{_HF_TEXT}norm.weight": WeightSource(f"{_CHECKPOINT}model.norm.weight", (hidden,)),
        "lm_head.weight": WeightSource(f"{_CHECKPOINT}output.weight", (vocab, hidden)),
    }
    for layer in range(text.num_layers):
        weights |= _internlm2_layer(text, layer, bias)
    return weights


def _internlm2_layer(text: TextShape, layer: int, bias: bool) -> dict[str, WeightSource]:
    source, target = f"{_CHECKPOINT}model.layers.{layer}.", f"{_HF_TEXT}layers.{layer}."
    hidden, width = text.hidden_size, text.intermediate_size
    queries = text.num_heads // text.num_kv_heads  # query heads of one key/value head
    query_rows = text.num_heads * text.head_dim
    packed_rows = text.num_kv_heads * (queries + 2) * text.head_dim

    weights = {
        f"{target}self_attn.o_proj.weight": WeightSource(f"{source}attention.wo.weight", (hidden, query_rows)),
        f"{target}mlp.gate_proj.weight": WeightSource(f"{source}feed_forward.w1.weight", (width, hidden)),
        f"{target}mlp.up_proj.weight": WeightSource(f"{source}feed_forward.w3.weight", (width, hidden)),
        f"{target}mlp.down_proj.weight": WeightSource(f"{source}feed_forward.w2.weight", (hidden, width)),
        f"{target}input_layernorm.weight": WeightSource(f"{source}attention_norm.weight", (hidden,)),
        f"{target}post_attention_layernorm.weight": WeightSource(f"{source}ffn_norm.weight", (hidden,)),
    }
    for part, start, stop in (
        ("q", 0, queries),
        ("k", queries, queries + 1),
        ("v", queries + 1, queries + 2),
    ):
        blocks = RowBlocks(text.num_kv_heads, queries + 2, text.head_dim, start, stop)
        weights[f"{target}self_attn.{part}_proj.weight"] = WeightSource(
            f"{source}attention.wqkv.weight", (packed_rows, hidden), blocks
        )
        if bias:
            weights[f"{target}self_attn.{part}_proj.bias"] = WeightSource(
                f"{source}attention.wqkv.bias", (packed_rows,), blocks
            )
    if bias:
        weights[f"{target}self_attn.o_proj.bias"] = WeightSource(f"{source}attention.wo.bias", (hidden,))
    return weights


# Ids of <IMG_CONTEXT>, and of </s> and <|im_end|>, in the tokenizer that the 2B, 8B and 26B checkpoints share.
_INTERNLM2_TOKENS = {92553: KnownTokens(image_token_id=92546, eos_token_ids=(2, 92542))}

TEXT_BACKBONES: Mapping[str, TextBackbone] = {
    "InternLM2ForCausalLM": TextBackbone("llama", ("internlm2-chat",), _INTERNLM2_TOKENS, internlm2_weights),
}
