"""The form of Qwen2.5-VL's config.json: types and ranges of every key that is read; other keys are let through.

On the Hub the decoder's settings lie at the top level, beside `vision_config`; transformers 5 writes them into a
`text_config` of their own and calls the rotary embedding's `rope_parameters`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from va_export.checkpoint.json_files import as_form
from va_export.models.decoder_config import CONFIG, DecoderConfig, Positions, Size, Small
from va_export.models.patch_config import Channel, MediaIds, PreprocessorFile, Rope, TowerConfig

PREPROCESSOR = "preprocessor_config.json"

Rate = Annotated[float, msgspec.Meta(gt=0, le=1e6)]


class TextConfig(DecoderConfig, frozen=True, kw_only=True):
    """The decoder's settings, wherever they lie."""

    num_key_value_heads: Size
    rope_scaling: Rope | None = None
    rope_parameters: Rope | None = None
    use_sliding_window: Literal[False] | None = None


class VisionConfig(TowerConfig, frozen=True, kw_only=True):
    """`vision_config`: the tower. What the published files call in_chans nothing reads."""

    hidden_act: Literal["silu"]
    window_size: Size
    fullatt_block_indexes: list[Annotated[int, msgspec.Meta(ge=0, le=1024)]]
    tokens_per_second: Rate


class ConfigFile(MediaIds, frozen=True, kw_only=True):
    """What stands beside the decoder's settings."""

    vision_config: VisionConfig


class Preprocessor(PreprocessorFile, frozen=True, kw_only=True):
    """preprocessor_config.json; the defaults are those of all published checkpoints."""

    min_pixels: Positions | None = 3136
    max_pixels: Positions | None = 12845056
    patch_size: Small = 14
    image_mean: tuple[Channel, Channel, Channel] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[Channel, Channel, Channel] = (0.26862954, 0.26130258, 0.27577711)


def read_config(config: Mapping[str, Any]) -> tuple[ConfigFile, TextConfig]:
    """Both parts of a config.json."""
    nested = config.get("text_config")
    text = {**config, **nested} if isinstance(nested, dict) else dict(config)
    # Tied or not is said at the top level; a text_config may repeat its own class's default.
    file = as_form(dict(config), ConfigFile, what="model's configuration", where=CONFIG)
    return file, as_form(text, TextConfig, what="model's configuration", where=CONFIG)
