"""InternVL2, 2.5, 3 and 3.5 (OpenGVLab, 2024 and 2025) in their original checkpoint layout and in transformers': an
InternViT, a pixel shuffle, a two-layer projector and a decoder; see `text_backbones` for the decoders that are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from va_export.models.component import Component, decoder_component, embedding_component
from va_export.models.family import AS_IT_IS, Choices, ModelSpec, WeightSource
from va_export.models.internvl2 import config as _config
from va_export.models.internvl2 import key_map, layouts
from va_export.models.internvl2.tiles import tiles
from va_export.models.tokenized import TokenizedFamily

if TYPE_CHECKING:
    from torch import nn

    from va_export.bundle.decoder_shards import DecoderShard
    from va_export.checkpoint.files import Checkpoint
    from va_export.models.checkpoint_tokenizer import TokenizerLayout
    from va_export.runtime.processing import Processing


class InternVL2(TokenizedFamily):
    """The family's entry in the table; the methods are documented in `models.family.ModelFamily`."""

    name: str = _config.FAMILY
    architectures: tuple[str, ...] = (layouts.ORIGINAL, layouts.TRANSFORMERS)

    def spec_from_config(self, config: Mapping[str, Any], choices: Choices = AS_IT_IS) -> ModelSpec:
        return _config.spec_from_config(config, choices)

    def published_config(self, hub_id: str) -> dict[str, Any] | None:
        from va_export.models.internvl2 import published

        return published.published_config(hub_id)

    def spec_from_checkpoint(self, checkpoint: Checkpoint, choices: Choices = AS_IT_IS) -> ModelSpec:
        tokens = self.tokenizer(checkpoint)
        image = tokens.image_token_id if choices.image_token_id is None else choices.image_token_id
        spec = _config.spec_from_config(
            checkpoint.config,
            replace(choices, image_token_id=image),
            tokens.stop_ids,
            tokens.end_of_turn_id,
            checkpoint.names(),
        )
        tokens.check(spec.text.vocab_size, choices.image_token_id)
        return spec

    def build_model(self, spec: ModelSpec, attention: str = "anchored") -> nn.Module:
        from va_export.models.internvl2 import reference

        return reference.build_model(spec, attention)

    def components(self, spec: ModelSpec, precision: str, shards: Sequence[DecoderShard]) -> tuple[Component, ...]:
        from va_export.models.internvl2.vision import vision_component

        return (
            vision_component(spec),
            embedding_component(spec, partial(self.visual_tokens, spec)),
            *(decoder_component(spec, precision, shard) for shard in shards),
        )

    def visual_tokens(self, spec: ModelSpec, n_frames: int) -> int:
        return n_frames * tiles(spec).tokens_per_frame

    def weight_map(self, spec: ModelSpec) -> Mapping[str, WeightSource]:
        return key_map.weight_map(spec)

    def processing(self, spec: ModelSpec, checkpoint: Checkpoint) -> Processing:
        from va_export.models.internvl2 import chat_template, prompt
        from va_export.models.internvl2.text_backbones import TEXT_BACKBONES
        from va_export.models.internvl2.tokenizer import prefix_ids

        default = TEXT_BACKBONES[spec.text_architecture].adds_bos
        config_bos = spec.hf_config["text_config"]["bos_token_id"]
        if not layouts.is_original(spec):
            chat_template.note_another(checkpoint.directory, checkpoint.note)
        tokenizer = self.tokenizer(checkpoint)
        first = tokenizer.first_id(default, config_bos, checkpoint.note)
        processing = prompt.processing(spec, first, checkpoint.config.get("system_message"))
        return msgspec.structs.replace(processing, prefix_ids=prefix_ids(tokenizer, processing.chat_template))

    def tokenizer_layout(self, config: Mapping[str, Any]) -> TokenizerLayout:
        from va_export.models.internvl2.tokenizer import layout

        text = config.get("text_config")
        rows = text.get("vocab_size") if isinstance(text, dict) and layouts.is_transformers(config) else None
        return layout(str(config.get("template")), rows if isinstance(rows, int) else None)

    def write_tiny_checkpoint(self, directory: Path, seed: int = 0) -> Path:
        from va_export.models.internvl2 import tiny

        return tiny.write_tiny_checkpoint(directory, seed)
