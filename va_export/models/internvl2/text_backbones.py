"""The decoders that InternVL2 comes with: one row a decoder.

A row says which Hugging Face text model computes the same function and where its weights lie in the checkpoint.
InternLM2 (the 2B, 8B and 26B models) is Llama with its query, key and value projections packed into one matrix; Llama
(40B: Yi; 76B: Llama 3) and Qwen2 (1B) lie in the checkpoint as Hugging Face names them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from va_export.models import decoder_weights
from va_export.models.decoder_weights import TEXT, placed
from va_export.models.family import RowBlocks, TextShape, WeightSource

Names = Mapping[str, str]


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
        weight_map: (shape, biases present, `ModelSpec.names`) → sources of the text model's parameters and of the
            output head.
        bias_key: the key of `llm_config` that says whether the attention's projections have biases, which the Hugging
            Face model calls `attention_bias`; None where the architecture decides.
        required: keys of `llm_config` with the one value that is supported, which is also their default.
        adds_bos: whether its tokenizer starts a text with a token of its own, where no file says.
        embedding, head: what the original's names of the two matrices end with; where they are tied, the second may be
            missing.
    """

    hf_model_type: str
    prompt_templates: tuple[str, ...]
    known_tokens: Mapping[int, KnownTokens]
    weight_map: Callable[[TextShape, bool, Names], dict[str, WeightSource]]
    bias_key: str | None
    required: Mapping[str, bool] = field(default_factory=dict)
    adds_bos: bool = True
    embedding: str = "embed_tokens.weight"
    head: str = "lm_head.weight"


def internlm2_weights(text: TextShape, bias: bool, names: Names) -> dict[str, WeightSource]:
    """InternLM2 → Llama.

    `wqkv` holds, for every key/value head, the rows of its query heads, then its key, then its value; `w1`, `w3`, `w2`
    are gate, up and down.
    """
    hidden, vocab, source = text.hidden_size, text.vocab_size, names["text"]
    weights = {
        f"{TEXT}embed_tokens.weight": WeightSource(f"{source}tok_embeddings.weight", (vocab, hidden)),
        f"{TEXT}norm.weight": WeightSource(f"{source}norm.weight", (hidden,)),
        "lm_head.weight": WeightSource(names["head"], (vocab, hidden)),
    }
    return placed(weights, [_internlm2_layer(text, source, layer, bias) for layer in range(text.num_layers)])


def _internlm2_layer(text: TextShape, source: str, layer: int, bias: bool) -> dict[str, WeightSource]:
    source, target = f"{source}layers.{layer}.", f"{TEXT}layers.{layer}."
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


def llama_weights(text: TextShape, bias: bool, names: Names) -> dict[str, WeightSource]:
    """Llama → Llama: the names differ in their prefix only."""
    return decoder_weights.llama_weights(text, names["text"], names["head"], ("q", "k", "v", "o") if bias else ())


def qwen2_weights(text: TextShape, bias: bool, names: Names) -> dict[str, WeightSource]:
    """Qwen2 → Qwen2, which always has biases on queries, keys and values and never on the output."""
    return decoder_weights.llama_weights(text, names["text"], names["head"], ("q", "k", "v"))


def qwen3_weights(text: TextShape, bias: bool, names: Names) -> dict[str, WeightSource]:
    """Qwen3 → Qwen3: a norm on each head's queries and keys."""
    biases = ("q", "k", "v", "o") if bias else ()
    return decoder_weights.llama_weights(text, names["text"], names["head"], biases, norms=("q", "k"))


def phi3_weights(text: TextShape, bias: bool, names: Names) -> dict[str, WeightSource]:
    """Phi-3 → Phi-3, which packs alike: all queries, all keys, all values; the gate, then up."""
    hidden, width = text.hidden_size, text.intermediate_size
    rows = (text.num_heads + 2 * text.num_kv_heads) * text.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.qkv_proj.weight": (rows, hidden),
        "self_attn.o_proj.weight": (hidden, text.num_heads * text.head_dim),
        "mlp.gate_up_proj.weight": (2 * width, hidden),
        "mlp.down_proj.weight": (hidden, width),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    return decoder_weights.named_alike(text, names["text"], names["head"], layer)


# Ids of <IMG_CONTEXT>, and of the tokens that end an answer (</s> or <|endoftext|>, and <|im_end|>), in the published
# tokenizers, by the size of the vocabulary with the family's nine tokens added; sources in published.toml.
_INTERNLM2_TOKENS = {92553: KnownTokens(image_token_id=92546, eos_token_ids=(2, 92542))}
_QWEN2_TOKENS = {
    151655: KnownTokens(image_token_id=151648, eos_token_ids=(151643, 151645)),
    151674: KnownTokens(image_token_id=151667, eos_token_ids=(151643, 151645)),  # Qwen2.5
}
_QWEN3_TOKENS = {151936: KnownTokens(image_token_id=151671, eos_token_ids=(151643, 151645))}
_PHI3_TOKENS = {32020: KnownTokens(image_token_id=32013, eos_token_ids=(32000, 32007))}
_LLAMA_TOKENS = {
    64007: KnownTokens(image_token_id=64000, eos_token_ids=(2, 7)),  # Yi
    128265: KnownTokens(image_token_id=128258, eos_token_ids=(128001, 128003)),  # Llama 3
    **_INTERNLM2_TOKENS,  # which transformers' layout makes a Llama of
}

TEXT_BACKBONES: Mapping[str, TextBackbone] = {
    "InternLM2ForCausalLM": TextBackbone(
        "llama",
        ("internlm2-chat", "Hermes-2", "internvl2_5"),
        _INTERNLM2_TOKENS,
        internlm2_weights,
        bias_key="bias",
        embedding="tok_embeddings.weight",
        head="output.weight",
    ),
    "LlamaForCausalLM": TextBackbone(
        "llama",
        ("Hermes-2", "internlm2-chat"),
        _LLAMA_TOKENS,
        llama_weights,
        bias_key="attention_bias",
        required={"mlp_bias": False},
    ),
    "Qwen2ForCausalLM": TextBackbone(
        "qwen2",
        ("Hermes-2", "internlm2-chat", "internvl2_5"),
        _QWEN2_TOKENS,
        qwen2_weights,
        bias_key=None,
        required={"use_sliding_window": False},
        adds_bos=False,
    ),
    "Qwen3ForCausalLM": TextBackbone(
        "qwen3",
        ("internvl2_5",),
        _QWEN3_TOKENS,
        qwen3_weights,
        bias_key="attention_bias",
        required={"use_sliding_window": False},
        adds_bos=False,
    ),
    # A sliding window of 262 144 is beyond its longest sequence: it never acts.
    "Phi3ForCausalLM": TextBackbone("phi3", ("phi3-chat",), _PHI3_TOKENS, phi3_weights, bias_key=None),
}
# Decoders of the family that are not read, and what of them does not fit.
REFUSED_BACKBONES: Mapping[str, str] = {
    "Qwen3MoeForCausalLM": "it is a mixture of experts",
    "GptOssForCausalLM": "it is a mixture of experts with attention sinks",
    "InternLM3ForCausalLM": "its attention has biases of its own, and nothing here was held against it",
}
