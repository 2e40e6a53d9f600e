"""The form of InternVL2's config.json: types and ranges of every key that is read; other keys are let through.

The layout is that of the OpenGVLab checkpoints (`InternVLChatModel`): a `vision_config` for InternViT, an `llm_config`
for the decoder, and the projector's settings beside them. Rotary embeddings come in two spellings: `rope_theta` and
`rope_scaling`, or `rope_parameters`, in which transformers 5 writes both.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from va_export.checkpoint.special_tokens import TokenId

# Upper limits are far above any model; they keep a wrong number from being taken for a size and computed with.
Layers = Annotated[int, msgspec.Meta(ge=1, le=1024)]
Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
Positions = Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]
Epsilon = Annotated[float, msgspec.Meta(gt=0, lt=1)]
Theta = Annotated[float, msgspec.Meta(gt=0, le=1e15)]
Factor = Annotated[float, msgspec.Meta(ge=1, le=1e6)]
Ratio = Annotated[float, msgspec.Meta(ge=1 / 64, le=1)]


class Rope(msgspec.Struct, frozen=True):
    """`rope_scaling` or `rope_parameters`."""

    type: str | None = None
    rope_type: str | None = None
    rope_theta: Theta | None = None
    factor: Factor | None = None
    partial_rotary_factor: Literal[1] | None = None
    original_max_position_embeddings: Positions | None = None
    short_factor: list[Theta] | None = None
    long_factor: list[Theta] | None = None


class LlmConfig(msgspec.Struct, frozen=True):
    """`llm_config`: the decoder."""

    architectures: list[str]
    hidden_act: Literal["silu"]
    hidden_size: Size
    intermediate_size: Size
    max_position_embeddings: Positions
    num_attention_heads: Size
    num_hidden_layers: Layers
    rms_norm_eps: Epsilon
    vocab_size: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    bos_token_id: TokenId | None = None
    eos_token_id: TokenId | list[TokenId] | None = None
    rope_theta: Theta | None = None
    rope_scaling: Rope | None = None
    rope_parameters: Rope | None = None
    partial_rotary_factor: Literal[1] | None = None
    tie_word_embeddings: bool | None = None
    bias: bool | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    use_sliding_window: bool | None = None
    original_max_position_embeddings: Positions | None = None
    layer_types: list[Literal["full_attention"]] | None = None


class VisionConfig(msgspec.Struct, frozen=True):
    """`vision_config`: InternViT."""

    hidden_act: Literal["gelu"]
    hidden_size: Size
    image_size: Size
    intermediate_size: Size
    layer_norm_eps: Epsilon
    norm_type: Literal["layer_norm", "rms_norm"]
    num_attention_heads: Size
    num_hidden_layers: Layers
    patch_size: Size
    qk_normalization: bool
    qkv_bias: bool
    num_channels: Literal[3] | None = None


class ConfigFile(msgspec.Struct, frozen=True):
    """The whole file."""

    llm_config: LlmConfig
    vision_config: VisionConfig
    template: str
    downsample_ratio: Ratio
    ps_version: Literal["v2"]
    force_image_size: Size | None = None
    select_layer: Literal[-1] | None = None
    system_message: str | None = None


class _Named(msgspec.Struct, frozen=True):
    architectures: list[str]


class DecoderName(msgspec.Struct, frozen=True):
    """What must be known before the rest can be judged: whose settings `llm_config` holds."""

    llm_config: _Named
