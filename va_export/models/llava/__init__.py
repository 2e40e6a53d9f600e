"""LLaVA-Video and LLaVA-OneVision (2024): SigLIP, a projector, pooled tokens with newlines, and Qwen2; in the original
layout and in transformers'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from va_export.models.component import Component, decoder_component, embedding_component
from va_export.models.family import AS_IT_IS, Choices, ModelSpec, WeightSource
from va_export.models.llava import config as _config
from va_export.models.llava import key_map
from va_export.models.llava.pooled import pooled
from va_export.models.tokenized import TokenizedFamily

if TYPE_CHECKING:
    from torch import nn

    from va_export.bundle.decoder_shards import DecoderShard
    from va_export.checkpoint.files import Checkpoint
    from va_export.models.checkpoint_tokenizer import TokenizerLayout
    from va_export.runtime.processing import Processing


class Llava(TokenizedFamily):
    """The family's entry in the table; the methods are documented in `models.family.ModelFamily`."""

    name: str = _config.FAMILY
    architectures: tuple[str, ...] = (_config.ORIGINAL, _config.TRANSFORMERS)

    def open_settings(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        # The official wrapper asks every checkpoint for averages and grid; its own file and demo have it otherwise.
        return ("mm_spatial_pool_mode", "mm_newline_position") if _config.is_original(config) else ()

    def spec_from_config(self, config: Mapping[str, Any], choices: Choices = AS_IT_IS) -> ModelSpec:
        return _config.spec_from_config(config, choices)

    def published_config(self, hub_id: str) -> dict[str, Any] | None:
        from va_export.models.llava import published

        return published.published_config(hub_id)

    def spec_from_checkpoint(self, checkpoint: Checkpoint, choices: Choices = AS_IT_IS) -> ModelSpec:
        tokens = self.tokenizer(checkpoint)
        shapes = {name: checkpoint.shape(name) for name in checkpoint.names()}
        spec = _config.spec_from_config(checkpoint.config, choices, shapes, tokens.all_stop_ids)
        tokens.check(spec.text.vocab_size, None)
        return spec

    def build_model(self, spec: ModelSpec, attention: str = "anchored") -> nn.Module:
        from va_export.models.llava import reference

        return reference.build_model(spec, attention)

    def components(self, spec: ModelSpec, precision: str, shards: Sequence[DecoderShard]) -> tuple[Component, ...]:
        from va_export.models.llava.vision import vision_component

        return (
            vision_component(spec),
            embedding_component(spec, partial(self.visual_tokens, spec)),
            *(decoder_component(spec, precision, shard) for shard in shards),
        )

    def visual_tokens(self, spec: ModelSpec, n_frames: int) -> int:
        vision = pooled(spec)
        return n_frames * vision.tokens_per_frame + vision.tokens_after

    def weight_map(self, spec: ModelSpec) -> Mapping[str, WeightSource]:
        return key_map.weight_map(spec)

    def processing(self, spec: ModelSpec, checkpoint: Checkpoint) -> Processing:
        from va_export.models.llava import prompt

        first = self.tokenizer(checkpoint).first_id(default=False, config_bos=None, note=checkpoint.note)
        return prompt.processing(spec, first)

    def tokenizer_layout(self, config: Mapping[str, Any]) -> TokenizerLayout:
        from va_export.models.llava.tokenizer import layout

        return layout(is_original=_config.is_original(config))

    def write_tiny_checkpoint(self, directory: Path, seed: int = 0) -> Path:
        from va_export.models.llava import tiny

        return tiny.write_tiny_checkpoint(directory, seed)
