"""A question about a video as the components of a model take it, whatever the family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Prepared:
    """One prompt of S tokens.

    Attributes:
        vision_inputs: what the vision component takes, by name; empty for a prompt without frames.
        input_ids: (1, S) int64.
        is_visual: (1, S), the placeholders, which take the visual tokens in order.
        is_scored: (1, S), those of them whose visual tokens are scored together and get gains.
        position_ids: (axes, 1, S) int64, what rotary embeddings turn by; not the slots of the cache.
        next_position: the position, on every axis, of the first token after the prompt.
        grid: (frames, rows, columns) that the first scored tokens fill in order; None where they fill none.
    """

    vision_inputs: Mapping[str, npt.NDArray[Any]]
    input_ids: npt.NDArray[np.int64]
    is_visual: npt.NDArray[np.bool_]
    is_scored: npt.NDArray[np.bool_]
    position_ids: npt.NDArray[np.int64]
    next_position: int
    grid: tuple[int, int, int] | None = None

    @property
    def length(self) -> int:
        """Tokens of the prompt, S."""
        return int(self.input_ids.shape[1])

    @property
    def scored_rows(self) -> npt.NDArray[np.bool_]:
        """Which of the visual tokens are scored, (N,)."""
        return self.is_scored[self.is_visual]

    def after(self, length: int) -> Prepared:
        """What is left of the prompt behind its first `length` tokens, at the positions that it has."""
        return replace(
            self,
            input_ids=self.input_ids[:, length:],
            is_visual=self.is_visual[:, length:],
            is_scored=self.is_scored[:, length:],
            position_ids=self.position_ids[..., length:],
        )

    def then(self, ids: Sequence[int]) -> Prepared:
        """The prompt with further tokens of text behind it."""
        axes, nothing = self.position_ids.shape[0], np.zeros((1, len(ids)), np.bool_)
        positions = np.tile(np.arange(len(ids), dtype=np.int64) + self.next_position, (axes, 1, 1))
        return replace(
            self,
            input_ids=np.concatenate([self.input_ids, np.array([ids], np.int64)], axis=1),
            is_visual=np.concatenate([self.is_visual, nothing], axis=1),
            is_scored=np.concatenate([self.is_scored, nothing], axis=1),
            position_ids=np.concatenate([self.position_ids, positions], axis=2),
            next_position=self.next_position + len(ids),
        )


def count_up(length: int) -> npt.NDArray[np.int64]:
    """Positions 0, 1, 2, … on one axis, (1, 1, length)."""
    return np.arange(length, dtype=np.int64)[None, None]
