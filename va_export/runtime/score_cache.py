"""Scores on disk, so that several questions about one video score it once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from va_export.runtime.array_cache import ArrayCache

_FORMAT = 1  # part of every key: raise it when the score's definition or an entry's content changes


@dataclass(frozen=True)
class Scored:
    """Sharing score in [0, 1] and subspace of each visual token, (N,) each; iterations that the solver took,
    0 where a graph does not tell."""

    sharing_score: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    iterations: int

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """For a file."""
        iterations = np.asarray(self.iterations, np.int64)
        return {"sharing_score": self.sharing_score, "labels": self.labels, "iterations": iterations}


@dataclass(frozen=True)
class ScoreCache:
    """Cached scores in `directory`, which is made when the first is stored; at most `max_entries` of them."""

    directory: Path
    max_entries: int = 256

    def key(self, tokens: npt.NDArray[Any], settings: Mapping[str, Any]) -> str:
        """SHA-256 of the tokens' values, type and shape, and of the settings by name."""
        contiguous = np.ascontiguousarray(tokens)
        head = {"format": _FORMAT, "dtype": contiguous.dtype.str, "shape": contiguous.shape, "settings": {**settings}}
        digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        digest.update(contiguous.data if contiguous.size else b"")
        return digest.hexdigest()

    def load(self, key: str, n_tokens: int) -> Scored | None:
        """The score under a key, or None; marks it as used."""
        entry = self._files.load(key, most_bytes=12 * n_tokens + 8)
        return None if entry is None else scored_from(entry, n_tokens)

    def store(self, key: str, score: Scored) -> None:
        """Keep a score, and drop the least recently used beyond the bound; a score is never lost to a full disk."""
        self._files.store(key, score.arrays())

    @property
    def _files(self) -> ArrayCache:
        return ArrayCache(self.directory, "score", max_entries=self.max_entries)


def scored_from(arrays: Mapping[str, npt.NDArray[Any]], n_tokens: int) -> Scored | None:
    """What `Scored.arrays` gave; None if it is not the score of so many tokens."""
    try:
        score, labels, iterations = arrays["sharing_score"], arrays["labels"], int(arrays["iterations"])
    except (LookupError, TypeError, ValueError, OverflowError):
        return None
    is_whole = score.shape == labels.shape == (n_tokens,)
    if not is_whole or score.dtype != np.float32 or labels.dtype != np.int64 or not np.isfinite(score).all():
        return None
    return Scored(score, labels, iterations)
