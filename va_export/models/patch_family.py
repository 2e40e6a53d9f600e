"""Families whose pictures keep their sizes and whose positions have three axes: what their entries share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from va_export.models.component import Component, decoder_component, embedding_component
from va_export.models.family import AS_IT_IS, Choices, ModelSpec
from va_export.models.patch_shape import patches
from va_export.models.tokenized import TokenizedFamily
from va_export.runtime.processing.grid_positions import AXES

if TYPE_CHECKING:
    from va_export.bundle.decoder_shards import DecoderShard
    from va_export.checkpoint.files import Checkpoint
    from va_export.models.checkpoint_tokenizer import TokenizerLayout


class PatchFamily(TokenizedFamily):
    """The methods are documented in `models.family.ModelFamily`; a family adds two of its own to them."""

    def read_spec(
        self, config: Mapping[str, Any], choices: Choices, names: Collection[str] = (), stop_ids: tuple[int, ...] = ()
    ) -> ModelSpec:
        """`spec_from_config`, knowing the checkpoint's tensors and further ids that end an answer."""
        raise NotImplementedError

    def vision(self, spec: ModelSpec) -> Component:
        """The tower."""
        raise NotImplementedError

    def spec_from_config(self, config: Mapping[str, Any], choices: Choices = AS_IT_IS) -> ModelSpec:
        return self.read_spec(config, choices)

    def spec_from_checkpoint(self, checkpoint: Checkpoint, choices: Choices = AS_IT_IS) -> ModelSpec:
        from va_export.models.patch_prompt import IMAGE_TOKEN, VIDEO_TOKEN

        tokens = self.tokenizer(checkpoint)
        spec = self.read_spec(checkpoint.config, choices, checkpoint.names(), tokens.all_stop_ids)
        tokens.check(spec.text.vocab_size, None)
        for token, key in ((VIDEO_TOKEN, "video_token_id"), (IMAGE_TOKEN, "image_token_id")):
            tokens.check_id(token, spec.hf_config[key], key)
        return spec

    def components(self, spec: ModelSpec, precision: str, shards: Sequence[DecoderShard]) -> tuple[Component, ...]:
        return (
            self.vision(spec),
            embedding_component(spec, partial(self.visual_tokens, spec)),
            *(decoder_component(spec, precision, shard, AXES) for shard in shards),
        )

    def visual_tokens(self, spec: ModelSpec, n_frames: int) -> int:
        return patches(spec).visual_tokens(n_frames)

    def tokenizer_layout(self, config: Mapping[str, Any]) -> TokenizerLayout:
        from va_export.models.patch_prompt import LAYOUT

        return LAYOUT

    def first_id(self, checkpoint: Checkpoint) -> int | None:
        """The id that every prompt starts with, None for none."""
        return self.tokenizer(checkpoint).first_id(default=False, config_bos=None, note=checkpoint.note)
