"""The form of Qwen3-VL's config.json: types and ranges of every key that is read; other keys are let through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from va_export.checkpoint.json_files import as_form
from va_export.checkpoint.special_tokens import TokenId
from va_export.models.decoder_config import CONFIG, DecoderConfig, Layers, Positions, Size, Theta

IMAGE_PREPROCESSOR, VIDEO_PREPROCESSOR = "preprocessor_config.json", "video_preprocessor_config.json"

Small = Annotated[int, msgspec.Meta(ge=1, le=1 << 10)]
Channel = Annotated[float, msgspec.Meta(gt=0, le=1)]


class Rope(msgspec.Struct, frozen=True):
    """`rope_scaling`, or `rope_parameters` as transformers 5 calls it."""

    type: str | None = None
    rope_type: str | None = None
    rope_theta: Theta | None = None
    mrope_section: list[Size] | None = None
    mrope_interleaved: bool | None = None


class TextConfig(DecoderConfig, frozen=True, kw_only=True):
    """`text_config`: the decoder."""

    num_key_value_heads: Size
    rope_scaling: Rope | None = None
    rope_parameters: Rope | None = None
    attention_bias: bool = False


class PlaneRope(msgspec.Struct, frozen=True):
    """The tower's `rope_parameters`, which transformers 5 writes."""

    rope_type: Literal["axial", "default"] = "axial"
    rope_theta: Theta = 10000.0


class VisionConfig(msgspec.Struct, frozen=True):
    """`vision_config`: the tower."""

    depth: Layers
    hidden_act: Literal["gelu_pytorch_tanh"]
    hidden_size: Size
    intermediate_size: Size
    num_heads: Size
    out_hidden_size: Size
    patch_size: Small
    spatial_merge_size: Small
    temporal_patch_size: Small
    num_position_embeddings: Size
    deepstack_visual_indexes: list[Annotated[int, msgspec.Meta(ge=0, le=1024)]]
    in_channels: Literal[3] = 3
    rope_parameters: PlaneRope = PlaneRope()


class ConfigFile(msgspec.Struct, frozen=True):
    """The whole of it."""

    text_config: TextConfig
    vision_config: VisionConfig
    image_token_id: TokenId
    video_token_id: TokenId
    vision_start_token_id: TokenId
    vision_end_token_id: TokenId
    tie_word_embeddings: bool = False


class Pixels(msgspec.Struct, frozen=True):
    """`size`: not sides, as the names have it, but pixels of a whole picture, or of a whole video."""

    shortest_edge: Positions
    longest_edge: Positions


class PreprocessorFile(msgspec.Struct, frozen=True):
    """preprocessor_config.json, for images; and video_preprocessor_config.json.

    Attributes:
        resample: Pillow's number of the filter: 2 is bilinear, 3 bicubic.
    """

    size: Pixels | None = None
    patch_size: Small = 16
    temporal_patch_size: Small = 2
    merge_size: Small = 2
    image_mean: tuple[Channel, Channel, Channel] = (0.5, 0.5, 0.5)
    image_std: tuple[Channel, Channel, Channel] = (0.5, 0.5, 0.5)
    resample: Literal[2, 3] = 3


def read_config(config: Mapping[str, Any]) -> ConfigFile:
    """A config.json in its form."""
    return as_form(dict(config), ConfigFile, what="model's configuration", where=CONFIG)
