"""What the two forms of the reference model share: sides with caches and positions of their own, and counted steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from va_export.export.source import Source
from va_export.proof.vision import run_vision
from va_export.runtime.processing import Prepared

Array = npt.NDArray[Any]
Gains = tuple[torch.Tensor, torch.Tensor]
OnStep = Callable[[int, int], None]


class ReferenceModel(ABC):
    """Sides (a pair of gains (1, S), or None for plain attention) are answered beside each other, each with a KV cache
    of its own.

    Args:
        model: Hugging Face's.
        on_step: called with (steps done, steps in all).
        steps: in all.
    """

    def __init__(self, source: Source, model: Any, on_step: OnStep | None, steps: int) -> None:
        self._source, self._model = source, model
        self._on_step, self._done, self._steps = on_step, 0, steps
        self._caches: list[Any] = []
        self._next_position, self._axes = 0, 1

    def visual_tokens(self, vision_inputs: Mapping[str, Array]) -> torch.Tensor:
        """(N, D) float32."""
        return run_vision(self._source, self._model, vision_inputs)

    @abstractmethod
    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(1, S) → (1, S, D)."""

    def prefill(self, embeds: torch.Tensor, prepared: Prepared, sides: Sequence[Gains | None]) -> Array:
        """(sides, vocab) logits of the prompt's last position."""
        from transformers import DynamicCache

        self._caches = [DynamicCache(config=self._model.config.text_config) for _ in sides]
        self._next_position, self._axes = prepared.next_position, len(prepared.position_ids)
        gains = [{} if side is None else {"key_log_gain": side[0], "value_gain": side[1]} for side in sides]
        return self._forward([embeds] * len(sides), torch.from_numpy(prepared.position_ids), gains)

    def step(self, tokens: npt.NDArray[np.int64]) -> Array:
        """Feed a token a side; (sides, vocab)."""
        embeds = [self.embed(torch.tensor([[int(token)]])) for token in tokens]
        logits = self._forward(embeds, torch.full((self._axes, 1, 1), self._next_position), [{}] * len(tokens))
        self._next_position += 1
        return logits

    def _forward(
        self, embeds: Sequence[torch.Tensor], position_ids: torch.Tensor, gains: Sequence[dict[str, torch.Tensor]]
    ) -> Array:
        # Families with one axis of positions take it without the axis.
        positions = position_ids[0] if len(position_ids) == 1 else position_ids
        return np.stack([logits[0].float().numpy() for logits in self._logits(embeds, positions, gains)])

    @abstractmethod
    def _logits(
        self, embeds: Sequence[torch.Tensor], positions: torch.Tensor, gains: Sequence[dict[str, torch.Tensor]]
    ) -> list[torch.Tensor]:
        """Append to each side's cache; its (1, vocab) logits of the last position."""

    def _count_step(self) -> None:
        self._done += 1
        if self._on_step is not None:
            self._on_step(self._done, self._steps)
