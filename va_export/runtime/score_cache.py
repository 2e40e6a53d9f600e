"""Scores on disk, so that several questions about one video score it once.

An entry is an .npz file (never a pickle) under the hash of the tokens and of everything that decides their score.
Entries appear by renaming a finished file, so that processes may share a directory; one that cannot be read counts
as absent. The least recently used go when there are too many.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from va_export.bundle.arrays import read_arrays
from va_export.errors import VaExportError

_FORMAT = 1  # part of every key: raise it when the score's definition or an entry's content changes
_SUFFIX = ".score.npz"
_PARTIAL = ".score.tmp"
_ABANDONED_SECONDS = 3600.0


@dataclass(frozen=True)
class Scored:
    """Sharing score in [0, 1] and subspace of each visual token, (N,) each; iterations that the solver took,
    0 where a graph does not tell."""

    sharing_score: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    iterations: int


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
        path = self._path(key)
        try:
            entry = read_arrays(path, most_bytes=12 * n_tokens + 8)
            score, labels, iterations = entry["sharing_score"], entry["labels"], int(entry["iterations"])
        except (VaExportError, LookupError, TypeError, ValueError, OverflowError):  # absent, damaged, or other arrays
            return None
        is_whole = score.shape == labels.shape == (n_tokens,)
        if not is_whole or score.dtype != np.float32 or labels.dtype != np.int64 or not np.isfinite(score).all():
            return None
        with contextlib.suppress(OSError):  # another process may have dropped it, or the directory be read-only
            os.utime(path)
        return Scored(score, labels, iterations)

    def store(self, key: str, score: Scored) -> None:
        """Keep a score, and drop the least recently used beyond the bound.

        A directory that cannot be written (full, read-only) leaves the cache as it is: a score is never lost to it.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(dir=self.directory, suffix=_PARTIAL)
        except OSError:
            return
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(
                    file,
                    sharing_score=score.sharing_score,
                    labels=score.labels,
                    iterations=np.int64(score.iterations),
                )
            Path(partial).replace(self._path(key))
        except OSError:
            Path(partial).unlink(missing_ok=True)
        self._drop_oldest()

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}{_SUFFIX}"

    def _drop_oldest(self) -> None:
        ages = []
        for path in self.directory.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(OSError):  # dropped by another process
                ages.append((path.stat().st_mtime_ns, path))
        for _, path in sorted(ages)[: max(0, len(ages) - self.max_entries)]:
            with contextlib.suppress(OSError):
                path.unlink()
        for path in self.directory.glob(f"*{_PARTIAL}"):  # of processes that were killed
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                    path.unlink()
