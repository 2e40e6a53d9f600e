"""The form of Qwen3-VL's config.json: types and ranges of every key that is read; other keys are let through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from va_export.checkpoint.json_files import as_form
from va_export.models.decoder_config import CONFIG, DecoderConfig, Positions, Size, Small, Theta
from va_export.models.patch_config import Channel, MediaIds, PreprocessorFile, Rope, TowerConfig

IMAGE_PREPROCESSOR, VIDEO_PREPROCESSOR = "preprocessor_config.json", "video_preprocessor_config.json"


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


class VisionConfig(TowerConfig, frozen=True, kw_only=True):
    """`vision_config`: the tower."""

    hidden_act: Literal["gelu_pytorch_tanh"]
    num_position_embeddings: Size
    deepstack_visual_indexes: list[Annotated[int, msgspec.Meta(ge=0, le=1024)]]
    rope_parameters: PlaneRope = PlaneRope()


class ConfigFile(MediaIds, frozen=True, kw_only=True):
    """The whole of it."""

    text_config: TextConfig
    vision_config: VisionConfig


class Pixels(msgspec.Struct, frozen=True):
    """`size`: not sides, as the names have it, but pixels of a whole picture, or of a whole video."""

    shortest_edge: Positions
    longest_edge: Positions


class Preprocessor(PreprocessorFile, frozen=True, kw_only=True):
    """preprocessor_config.json, for images, or video_preprocessor_config.json; the defaults are the published ones."""

    size: Pixels | None = None
    patch_size: Small = 16
    image_mean: tuple[Channel, Channel, Channel] = (0.5, 0.5, 0.5)
    image_std: tuple[Channel, Channel, Channel] = (0.5, 0.5, 0.5)


def read_config(config: Mapping[str, Any]) -> ConfigFile:
    """A config.json in its form."""
    return as_form(dict(config), ConfigFile, what="model's configuration", where=CONFIG)
