"""The reference model, whole in memory: Hugging Face's own forward, from the frames to the last token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from va_export.export.source import Source
from va_export.models.parameters import load_model
from va_export.proof.vision import run_vision
from va_export.runtime.processing import Prepared

Array = npt.NDArray[Any]
Gains = tuple[torch.Tensor, torch.Tensor]


class WholeReference:
    """Takes 4 bytes a parameter; reads the checkpoint once. Sides (a pair of gains (1, S), or None for plain attention)
    are answered beside each other, each with a KV cache of its own.

    Args:
        on_step: called with (steps done, steps in all): a token of all sides is a step.
    """

    def __init__(self, source: Source, on_step: Callable[[int, int], None] | None, new_tokens: int) -> None:
        self._source = source
        self._model: Any = load_model(source.family, source.spec, source.checkpoint, weight_map=source.weight_map)
        self._on_step, self._done, self._new_tokens = on_step, 0, new_tokens
        self._caches: list[Any] = []
        self._next_position = 0

    def visual_tokens(self, vision_inputs: Mapping[str, Array]) -> torch.Tensor:
        """(N, D) float32."""
        return run_vision(self._source, self._model, vision_inputs)

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(1, S) → (1, S, D)."""
        embeddings: torch.Tensor = self._model.get_input_embeddings()(input_ids)
        return embeddings

    def prefill(self, embeds: torch.Tensor, prepared: Prepared, sides: Sequence[Gains | None]) -> Array:
        """(sides, vocab) logits of the prompt's last position."""
        from transformers import DynamicCache

        self._caches = [DynamicCache(config=self._model.config.text_config) for _ in sides]
        self._next_position = prepared.next_position
        gains = [{} if side is None else {"key_log_gain": side[0], "value_gain": side[1]} for side in sides]
        return self._forward([embeds] * len(sides), torch.from_numpy(prepared.position_ids), gains)

    def step(self, tokens: npt.NDArray[np.int64]) -> Array:
        """Feed a token a side; (sides, vocab)."""
        embeds = [self.embed(torch.tensor([[int(token)]])) for token in tokens]
        logits = self._forward(embeds, torch.tensor([[[self._next_position]]]), [{}] * len(tokens))
        self._next_position += 1
        return logits

    def _forward(
        self, embeds: Sequence[torch.Tensor], position_ids: torch.Tensor, gains: Sequence[dict[str, torch.Tensor]]
    ) -> Array:
        rows = []
        for hidden, cache, kwargs in zip(embeds, self._caches, gains, strict=True):
            state = self._model.model.language_model(
                inputs_embeds=hidden,
                position_ids=position_ids[0] if len(position_ids) == 1 else position_ids,
                past_key_values=cache,
                use_cache=True,
                **kwargs,
            ).last_hidden_state
            rows.append(self._model.lm_head(state[:, -1])[0].float().numpy())
        self._done += 1
        if self._on_step is not None:
            self._on_step(self._done, self._new_tokens)
        return np.stack(rows)
