"""Qwen3-VL (Qwen, 2025, arXiv 2511.21631), dense: a tower over patches of pictures of any size, whose middle layers
feed the decoder's first ones too; Qwen3 with positions in time, row and column that take turns; times as text.

VideoAnchor's authors did not use it: gains are not the paper's, and the numbers are held to transformers' own classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from va_export.models.component import Component, decoder_component, embedding_component
from va_export.models.family import AS_IT_IS, Choices, ModelSpec, WeightSource
from va_export.models.patch_shape import patches
from va_export.models.qwen3_vl import config as _config
from va_export.models.qwen3_vl import key_map
from va_export.models.tokenized import TokenizedFamily
from va_export.runtime.processing.grid_positions import AXES

if TYPE_CHECKING:
    from torch import nn

    from va_export.bundle.decoder_shards import DecoderShard
    from va_export.checkpoint.files import Checkpoint
    from va_export.models.checkpoint_tokenizer import TokenizerLayout
    from va_export.runtime.processing import Processing


class Qwen3VL(TokenizedFamily):
    """The family's entry in the table; the methods are documented in `models.family.ModelFamily`."""

    name: str = _config.FAMILY
    architectures: tuple[str, ...] = ("Qwen3VLForConditionalGeneration",)

    def spec_from_config(self, config: Mapping[str, Any], choices: Choices = AS_IT_IS) -> ModelSpec:
        return _config.spec_from_config(config, choices)

    def published_config(self, hub_id: str) -> dict[str, Any] | None:
        from va_export.models.qwen3_vl import published

        return published.published_config(hub_id)

    def spec_from_checkpoint(self, checkpoint: Checkpoint, choices: Choices = AS_IT_IS) -> ModelSpec:
        from va_export.models.qwen3_vl.prompt import IMAGE_TOKEN, VIDEO_TOKEN

        tokens = self.tokenizer(checkpoint)
        spec = _config.spec_from_config(checkpoint.config, choices, checkpoint.names(), tokens.all_stop_ids)
        tokens.check(spec.text.vocab_size, None)
        for token, key in ((VIDEO_TOKEN, "video_token_id"), (IMAGE_TOKEN, "image_token_id")):
            tokens.check_id(token, spec.hf_config[key], key)
        return spec

    def build_model(self, spec: ModelSpec, attention: str = "anchored") -> nn.Module:
        from va_export.models.qwen3_vl import reference

        return reference.build_model(spec, attention)

    def components(self, spec: ModelSpec, precision: str, shards: Sequence[DecoderShard]) -> tuple[Component, ...]:
        from va_export.models.qwen3_vl.vision import vision_component

        return (
            vision_component(spec),
            embedding_component(spec, partial(self.visual_tokens, spec)),
            *(decoder_component(spec, precision, shard, AXES) for shard in shards),
        )

    def visual_tokens(self, spec: ModelSpec, n_frames: int) -> int:
        return patches(spec).visual_tokens(n_frames)

    def weight_map(self, spec: ModelSpec) -> Mapping[str, WeightSource]:
        return key_map.weight_map(spec)

    def processing(self, spec: ModelSpec, checkpoint: Checkpoint) -> Processing:
        from va_export.models.qwen3_vl import prompt

        first = self.tokenizer(checkpoint).first_id(default=False, config_bos=None, note=checkpoint.note)
        return prompt.processing(spec, checkpoint, first)

    def tokenizer_layout(self, config: Mapping[str, Any]) -> TokenizerLayout:
        from va_export.models.qwen3_vl.tokenizer import LAYOUT

        return LAYOUT

    def write_tiny_checkpoint(self, directory: Path, seed: int = 0) -> Path:
        from va_export.models.qwen3_vl import tiny

        return tiny.write_tiny_checkpoint(directory, seed)
