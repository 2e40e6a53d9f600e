"""The forms of LLaVA's config.json in its two layouts: types and ranges of every key that is read; others are let
through.

The original (`LlavaQwenForCausalLM`) keeps the decoder's settings at the top level and says nothing of the tower's
sizes; transformers' (`LlavaOnevisionForConditionalGeneration`) has a `text_config` and a `vision_config`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from va_export.checkpoint.special_tokens import TokenId
from va_export.models.decoder_config import DecoderConfig, Epsilon, Layers, Positions, Size, Theta

Newline = Literal["grid", "frame", "one_token", "no_token"]
Pooling = Literal["bilinear", "average"]


class Rope(msgspec.Struct, frozen=True):
    """`rope_parameters` of transformers 5."""

    rope_theta: Theta
    rope_type: Literal["default"] = "default"


class TextConfig(DecoderConfig, frozen=True, kw_only=True):
    """The decoder's settings, wherever they lie."""

    num_key_value_heads: Size
    hidden_act: Literal["silu"] = "silu"
    max_position_embeddings: Positions = 32768
    rms_norm_eps: Epsilon = 1e-6
    rope_parameters: Rope | None = None
    use_sliding_window: Literal[False] | None = None


class UnscaledTextConfig(TextConfig, frozen=True, kw_only=True):
    """The same in transformers' layout, which follows rope_scaling; the original sets it to none, whatever it says."""

    rope_scaling: None = None


class VisionConfig(msgspec.Struct, frozen=True):
    """SigLIP's sizes; the defaults are so400m's without its last layer, as published checkpoints have it."""

    hidden_size: Size = 1152
    image_size: Size = 384
    intermediate_size: Size = 4304
    num_attention_heads: Size = 16
    num_hidden_layers: Layers = 26
    patch_size: Size = 14
    layer_norm_eps: Epsilon = 1e-6
    hidden_act: Literal["gelu_pytorch_tanh"] = "gelu_pytorch_tanh"


class OriginalFile(msgspec.Struct, frozen=True):
    """What stands beside the decoder's settings in the original layout."""

    mm_projector_type: Literal["mlp2x_gelu"]
    mm_vision_select_layer: Literal[-2]
    mm_vision_select_feature: Literal["patch"] = "patch"
    mm_newline_position: Newline = "one_token"
    mm_spatial_pool_mode: Pooling = "bilinear"
    mm_patch_merge_type: str = "flat"
    add_faster_video: Literal[False] | None = None
    vision_config: VisionConfig | None = None


class TransformersFile(msgspec.Struct, frozen=True):
    """What stands beside both parts in transformers' layout."""

    vision_config: VisionConfig
    video_token_index: TokenId | None = None
    video_token_id: TokenId | None = None
    vision_feature_layer: Literal[-1] = -1
    vision_feature_select_strategy: Literal["full"] = "full"
    projector_hidden_act: Literal["gelu"] = "gelu"
    tie_word_embeddings: bool = False
