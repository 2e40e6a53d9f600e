"""The forms of InternVL2's config.json in its two layouts: types and ranges of every key that is read; other keys are
let through.

The original is that of the OpenGVLab checkpoints (`InternVLChatModel`): a `vision_config` for InternViT, an
`llm_config` for the decoder, and the projector's settings beside them. transformers'
(`InternVLForConditionalGeneration`) has a `text_config` instead and other words for the tower. Rotary embeddings come
in two spellings: `rope_theta` and `rope_scaling`, or `rope_parameters`, in which transformers 5 writes both.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from va_export.checkpoint.special_tokens import TokenId
from va_export.models.decoder_config import DecoderConfig, Epsilon, Layers, Positions, Size, Theta

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


class LlmConfig(DecoderConfig, frozen=True, kw_only=True):
    """`llm_config`, and `text_config` of transformers' layout: the decoder."""

    rope_scaling: Rope | None = None
    rope_parameters: Rope | None = None
    partial_rotary_factor: Literal[1] | None = None
    bias: bool | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    use_sliding_window: bool | None = None
    original_max_position_embeddings: Positions | None = None


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


class TowerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`vision_config` in transformers' layout: InternViT. The defaults are those of its class."""

    hidden_size: Size
    image_size: Size | list[Size]
    intermediate_size: Size
    num_attention_heads: Size
    num_hidden_layers: Layers
    patch_size: Size | list[Size]
    attention_bias: bool = False
    hidden_act: Literal["gelu"] = "gelu"
    layer_norm_eps: Epsilon = 1e-6
    norm_type: Literal["layer_norm", "rms_norm"] = "layer_norm"
    num_channels: Literal[3] = 3
    use_absolute_position_embeddings: Literal[True] = True
    use_mask_token: Literal[False] = False
    use_mean_pooling: Literal[True] = True  # without it, a norm would follow the last layer
    use_qk_norm: bool = False


class TransformersFile(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file in transformers' layout; the defaults are those of its class."""

    text_config: LlmConfig
    vision_config: TowerConfig
    downsample_ratio: Ratio = 0.5
    image_seq_length: Size | None = None
    image_token_id: TokenId | None = None
    image_token_index: TokenId | None = None
    projector_hidden_act: Literal["gelu"] = "gelu"
    tie_word_embeddings: bool = True
    vision_feature_layer: Literal[-1] = -1
    vision_feature_select_strategy: Literal["default"] = "default"


class _Typed(msgspec.Struct, frozen=True):
    model_type: str = "qwen2"
    architectures: list[str] | None = None


class TextName(msgspec.Struct, frozen=True):
    """What must be known before the rest can be judged: whose settings `text_config` holds."""

    text_config: _Typed


class _Named(msgspec.Struct, frozen=True):
    architectures: list[str]


class DecoderName(msgspec.Struct, frozen=True):
    """What must be known before the rest can be judged: whose settings `llm_config` holds."""

    llm_config: _Named
