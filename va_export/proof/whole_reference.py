"""The reference model, whole in memory: Hugging Face's own forward, from the frames to the last token."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from va_export.anchor.hugging_face_cache import with_cache
from va_export.export.source import Source
from va_export.models import deepstack
from va_export.models.parameters import load_model
from va_export.proof.reference_model import OnStep, ReferenceModel


class WholeReference(ReferenceModel):
    """Takes 4 bytes a parameter; reads the checkpoint once. A token of all sides is a step."""

    def __init__(self, source: Source, on_step: OnStep | None, new_tokens: int) -> None:
        model = load_model(source.family, source.spec, source.checkpoint, weight_map=source.weight_map)
        super().__init__(source, model, on_step, steps=new_tokens)

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(1, S) → (1, S, D)."""
        embeddings: torch.Tensor = self._model.get_input_embeddings()(input_ids)
        return embeddings

    def _logits(
        self, embeds: Sequence[torch.Tensor], positions: torch.Tensor, gains: Sequence[dict[str, torch.Tensor]]
    ) -> list[torch.Tensor]:
        rows, decoder = [], self._model.model.language_model
        for hidden, cache, kwargs in zip(embeds, self._caches, gains, strict=True):
            state = decoder(
                **deepstack.arguments(hidden, decoder.config.hidden_size),
                position_ids=positions,
                use_cache=True,
                **with_cache(decoder, cache),
                **kwargs,
            ).last_hidden_state
            rows.append(self._model.lm_head(state[:, -1]))
        self._count_step()
        return rows
