"""Arrays on disk under a hash of what they follow from.

An entry is an .npz file (never a pickle; the archive's checksums tell damage). Entries appear by renaming a finished
file, so that processes may share a directory; one that cannot be read counts as absent. The least recently used go when
there are too many of them, or they are too large together.
"""

from __future__ import annotations

import contextlib
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

_ABANDONED_SECONDS = 3600.0


@dataclass(frozen=True)
class ArrayCache:
    """Entries in `directory`, which is made when the first is stored.

    Attributes:
        kind: of entries, part of their files' names.
        max_entries, max_bytes: of that kind, at the most; None: any.
    """

    directory: Path
    kind: str
    max_entries: int | None = None
    max_bytes: int | None = None

    def load(self, key: str, most_bytes: int) -> dict[str, npt.NDArray[Any]] | None:
        """The arrays under a key, or None; marks them as used.

        Args:
            most_bytes: that they can have together.
        """
        path = self._path(key)
        try:
            arrays = read_arrays(path, most_bytes=most_bytes)
        except VaExportError:  # absent or damaged
            return None
        with contextlib.suppress(OSError):  # another process may have dropped it, or the directory be read-only
            os.utime(path)
        return arrays

    def store(self, key: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Keep arrays, and drop the least recently used beyond the bounds.

        A directory that cannot be written (full, read-only) leaves the cache as it is: nothing is lost to it.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(dir=self.directory, suffix=self._partial)
        except OSError:
            return
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]  # names are none of its own arguments'
            Path(partial).replace(self._path(key))
        except OSError:
            Path(partial).unlink(missing_ok=True)
        self._drop_oldest()

    @property
    def _partial(self) -> str:
        return f".{self.kind}.tmp"

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}.{self.kind}.npz"

    def _drop_oldest(self) -> None:
        entries = []
        for path in self.directory.glob(f"*.{self.kind}.npz"):
            with contextlib.suppress(OSError):  # dropped by another process
                status = path.stat()
                entries.append((status.st_mtime_ns, status.st_size, path))
        entries.sort(reverse=True)
        total = 0
        for number, (_, size, path) in enumerate(entries):
            total += size
            if (self.max_entries is not None and number >= self.max_entries) or (
                self.max_bytes is not None and total > self.max_bytes
            ):
                with contextlib.suppress(OSError):
                    path.unlink()
        for path in self.directory.glob(f"*{self._partial}"):  # of processes that were killed
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                    path.unlink()
