"""A data file that is written from front to back, and the SHA-256 of what was written.

The digest is computed by a second thread while the next bytes are written, and what was written is brought to the disk
by a third.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# Written, hashed and read back at a time.
_CHUNK = 8 << 20


@contextmanager
def open_data_file(path: Path, on_bytes: Callable[[int], None]) -> Iterator[DataFile]:
    """Open a file that exists in its full size, to be written anew.

    Args:
        on_bytes: called with the number of bytes that were done since the call before.
    """
    with (
        path.open("r+b", buffering=0) as file,
        ThreadPoolExecutor(1, "hash weights") as hasher,
        ThreadPoolExecutor(1, "flush weights") as flusher,
    ):
        yield DataFile(path, file.fileno(), hasher, flusher, on_bytes)


class DataFile:
    """The file, and the digest of its bytes up to `position`; `open_data_file` makes one."""

    def __init__(
        self, path: Path, descriptor: int, hasher: Executor, flusher: Executor, on_bytes: Callable[[int], None]
    ) -> None:
        self.position = 0
        self._digest = hashlib.sha256()
        self._hasher, self._flusher = hasher, flusher
        self._hashing: Future[None] | None = None
        self._path = path
        self._descriptor = descriptor
        self._on_bytes = on_bytes

    def pad_to(self, offset: int) -> None:
        """Write zeros up to `offset`."""
        self.write(memoryview(bytes(offset - self.position)))

    def write(self, content: memoryview) -> None:
        """Write at the position, and hash what was written; nothing looks at `content` afterwards."""
        for start in range(0, len(content), _CHUNK):
            chunk = content[start : start + _CHUNK]
            self._put(chunk, self.position)
            self._advance(chunk)
        self._wait()

    def write_runs(self, runs: npt.NDArray[np.uint8], offset: int, stride: int) -> None:
        """Write (runs, bytes), a run every `stride` bytes from `offset` on, somewhere behind the position; `take` is to
        follow when there are no gaps any more."""
        for number, run in enumerate(runs):
            self._put(memoryview(run), offset + number * stride)

    def take(self, until: int) -> None:
        """Read what is there already up to `until`, as if it had been written now."""
        while self.position < until:
            content = os.pread(self._descriptor, min(_CHUNK, until - self.position), self.position)
            if not content:
                return
            self._advance(memoryview(content))

    def state(self) -> tuple[Any, int]:
        """The digest so far and the position, for `go_back`."""
        self._wait()
        return self._digest.copy(), self.position

    def go_back(self, state: tuple[Any, int]) -> None:
        """Forget what was taken since `state`."""
        self._wait()
        self._on_bytes(state[1] - self.position)
        self._digest, self.position = state

    def hexdigest(self) -> str:
        """SHA-256 of everything before the position."""
        self._wait()
        return self._digest.hexdigest()

    def flush(self) -> Future[str]:
        """Bring everything before the position to the disk; gives its SHA-256 when it is there."""
        digest = self._hasher.submit(self._digest.hexdigest)  # stands in line behind what is to be hashed before

        def flushed() -> str:
            os.fsync(self._descriptor)
            return digest.result()

        return self._flusher.submit(flushed)

    def _put(self, content: memoryview, offset: int) -> None:
        written = 0
        while written < len(content):
            try:
                written += os.pwrite(self._descriptor, content[written:], offset + written)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self._path)) from error

    def _advance(self, content: memoryview) -> None:
        self._wait()
        self._hashing = self._hasher.submit(self._digest.update, content)
        self.position += len(content)
        self._on_bytes(len(content))

    def _wait(self) -> None:
        if self._hashing is not None:
            self._hashing.result()
