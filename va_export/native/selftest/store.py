"""Where the findings of self-tests lie: a file for each GPU, driver, library and shape, in the user's cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from va_export.documents import encode, read
from va_export.errors import VaExportError
from va_export.native.selftest.documents import Record

_LOG = logging.getLogger("va_export.selftest")
_WHAT, _FIX = "the self-test's record", "remove it: the next start tests again"


class Store:
    """The record of one key, while nobody else writes it; use `locked`."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def load(self) -> Record | None:
        """What is there, or None; what cannot be read is as good as nothing."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            return read(self.path, Record, what=_WHAT, fix=_FIX)
        except VaExportError as error:
            _LOG.warning("%s; the self-test runs again", error)
            return None

    def save(self, record: Record) -> None:
        """Put a record in the place of what is there, whole or not at all; a disk that refuses keeps nothing."""
        if self.path is None:
            return
        partial = self.path.with_suffix(f".{os.getpid()}.partial")
        try:
            partial.write_bytes(encode(record))
            partial.replace(self.path)
        except OSError as error:
            _LOG.warning("the self-test's record is not kept: %s", error)
            self.path = None
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(key: dict[str, str | int]) -> Iterator[Store]:
    """The store of a key. Others that want it wait; the system takes the lock back from a process that dies. Where
    nothing can be written, the store keeps nothing."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    with contextlib.ExitStack() as stack:
        path = None
        try:
            if (directory := _directory()) is not None:
                directory.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(directory / f"{digest[:32]}.lock"))
                path = directory / f"{digest[:32]}.json"
        except (OSError, NotImplementedError) as error:
            _LOG.warning("the self-test's record cannot be kept: %s", error)
        yield Store(path)


def read_shipped(path: Path) -> Record:
    """A record that came with the application.

    Raises:
        VaExportError: no such file, or it is no finished record.
    """
    record = read(path, Record, what=_WHAT, fix="give the record of a GPU of this kind, or 1 to test here")
    if record.running is not None:
        raise VaExportError("the self-test that wrote this record did not end", where=path, fix=_FIX)
    return record


def _directory() -> Path | None:
    from va_export.runtime.user_cache import resolve_cache

    return resolve_cache("the self-test's cache", "", "selftest")
