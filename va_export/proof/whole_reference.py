"""The reference model, whole in memory: Hugging Face's own forward, from the frames to the last token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from va_export.checkpoint.files import Checkpoint
from va_export.models.family import ModelFamily, ModelSpec

Array = npt.NDArray[Any]
Gains = tuple[torch.Tensor, torch.Tensor]


class WholeReference:
    """Takes 4 bytes a parameter; reads the checkpoint once."""

    def __init__(self, family: ModelFamily, spec: ModelSpec, checkpoint: Checkpoint) -> None:
        self._model: Any = family.load_reference(spec, checkpoint)

    def visual_tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(F, 3, S, S) → (N, D)."""
        features = self._model.model.get_image_features(pixel_values, return_dict=True)
        tokens: torch.Tensor = features.pooler_output.flatten(0, 1).float()
        return tokens

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(1, S) → (1, S, D)."""
        embeddings: torch.Tensor = self._model.get_input_embeddings()(input_ids)
        return embeddings

    def greedy(
        self,
        embeds: torch.Tensor,
        sides: Sequence[Gains | None],
        new_tokens: int,
        on_step: Callable[[int, int], None] | None = None,
    ) -> list[tuple[Array, Array]]:
        """Prefill and greedy steps for every side: a pair of gains (1, S), or None for plain attention.

        Returns:
            Per side the tokens (T,) and the logits (T, vocab) that each was chosen from.
        """
        results = []
        for number, gains in enumerate(sides):
            results.append(self._greedy(embeds, gains, new_tokens))
            if on_step is not None:
                on_step(number + 1, len(sides))
        return results

    def _greedy(self, embeds: torch.Tensor, gains: Gains | None, new_tokens: int) -> tuple[Array, Array]:
        from transformers import DynamicCache

        cache = DynamicCache(config=self._model.config.text_config)
        kwargs = {} if gains is None else {"key_log_gain": gains[0], "value_gain": gains[1]}
        tokens: list[int] = []
        rows: list[Array] = []
        for _ in range(new_tokens):
            hidden = self._model.model.language_model(
                inputs_embeds=embeds, past_key_values=cache, use_cache=True, **kwargs
            ).last_hidden_state
            rows.append(self._model.lm_head(hidden[:, -1])[0].float().numpy())
            tokens.append(int(rows[-1].argmax()))
            embeds = self.embed(torch.tensor([[tokens[-1]]]))
            kwargs = {}
        return np.array(tokens, dtype=np.int64), np.stack(rows)
