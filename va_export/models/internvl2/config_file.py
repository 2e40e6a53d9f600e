"""The form of InternVL2's config.json: types and ranges of every key that is read; other keys are let through.

The layout is that of the OpenGVLab checkpoints (`InternVLChatModel`): a `vision_config` for InternViT, an `llm_config`
for the decoder, and the projector's settings beside them. Rotary embeddings come in two spellings: `rope_theta` and
`rope_scaling`, or `rope_parameters`, in which transformers 5 writes both.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

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
    """`llm_config`: the decoder."""

    architectures: list[str]
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


class _Named(msgspec.Struct, frozen=True):
    architectures: list[str]


class DecoderName(msgspec.Struct, frozen=True):
    """What must be known before the rest can be judged: whose settings `llm_config` holds."""

    llm_config: _Named
