"""A question about a video as the components of a model take it, whatever the family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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


def count_up(length: int) -> npt.NDArray[np.int64]:
    """Positions 0, 1, 2, … on one axis, (1, 1, length)."""
    return np.arange(length, dtype=np.int64)[None, None]
