"""Built engines on disk, so that an export with the same inputs builds nothing again.

An engine lies as `KEY.engine` beside `KEY.json`, which names its ingredients and its SHA-256 and is written last: an
engine without it does not count. Where it can, the cache shares the bundle's file (a hard link), so that an engine of
many gigabytes lies on the disk once. Every reuse compares the SHA-256; what differs is dropped and built again.

Processes may share a directory. Who builds an engine holds a lock on it, which the system takes back from a process
that dies; others that want the same engine wait and then find it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from va_export.bundle.manifest import sha256
from va_export.documents import Form, encode, read
from va_export.errors import VaExportError
from va_export.tensorrt.cache_key import CacheKey
from va_export.tensorrt.engine_info import EngineInfo

# Two generations of an 8B model in float16 and a spare; the least recently used go first.
MAX_BYTES = 40_000_000_000
_NEVER = 0
_OURS = re.compile(r"\.?([0-9a-f]{64})\.(json|engine|engine\.partial)")
_LOG = logging.getLogger("va_export.engine_cache")


@dataclass(frozen=True)
class Obtained:
    """An engine where it was wanted.

    Attributes:
        sha256: of the file.
        reused: whether it came from the cache.
    """

    info: EngineInfo
    sha256: str
    reused: bool


class Entry(Form, frozen=True):
    """What lies beside a cached engine: what it was made of, for people who look; its file's digest; what was built."""

    ingredients: dict[str, Any]
    sha256: str
    info: EngineInfo


@dataclass(frozen=True)
class EngineCache:
    """The cache in `directory`, which is made when the first engine is wanted; at most `max_bytes` of engines."""

    directory: Path
    max_bytes: int = MAX_BYTES

    def obtain(
        self,
        key: CacheKey,
        destination: Path,
        build: Callable[[], EngineInfo],
        on_wait: Callable[[], None] = lambda: None,
    ) -> Obtained:
        """Put the engine of that key at `destination`, built by `build` unless it is here.

        A cache that cannot be used (read-only, full, a file system without locks) costs a build and is no error.

        Args:
            build: leaves the engine at `destination`; what it raises goes through, and nothing is kept.
            on_wait: called when another process builds this engine now and must be waited for.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._locked(key.digest, on_wait))
            except (OSError, NotImplementedError) as error:
                _LOG.warning("the engine cache %s cannot be used: %s", self.directory, error)
                return build_only(destination, build)
            found = self._take(key.digest, destination)
            if found is not None:
                return found
            built = build_only(destination, build)
            self._store(key, built, destination)
        self._evict(keep=key.digest)
        return built

    @contextlib.contextmanager
    def _locked(self, digest: str, on_wait: Callable[[], None] = lambda: None, *, wait: bool = True) -> Iterator[None]:
        locks = self.directory / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        # A file for each 4096th of all keys, never removed: removing a file that others wait for would give two
        # processes a lock of the same name.
        lock = FileLock(locks / f"{digest[:3]}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if not wait:
                raise
            on_wait()
            lock.acquire(poll_interval=0.5)
        try:
            yield
        finally:
            lock.release()

    def _engine(self, digest: str) -> Path:
        return self.directory / f"{digest}.engine"

    def _partial(self, digest: str) -> Path:
        """One for all processes, since who writes it holds the key's lock."""
        return self.directory / f".{digest}.engine.partial"

    def _entry(self, digest: str) -> Path:
        return self.directory / f"{digest}.json"

    def _take(self, digest: str, destination: Path) -> Obtained | None:
        """The cached engine at `destination`, or None; an entry that is not whole is dropped."""
        entry = self._entry(digest)
        if not entry.is_file():
            return None
        placed = destination.with_name(f".{destination.name}.{os.getpid()}.partial")
        try:
            found = read(entry, Entry, what="the cache's entry", fix="nothing: it is dropped")
            _link_or_copy(self._engine(digest), placed)
            # What was placed is what is hashed: the copy, where it is one.
            if placed.stat().st_size != found.info.size_bytes or sha256(placed) != found.sha256:
                raise ValueError("its content is not what was stored")
            placed.replace(destination)
        except (FileNotFoundError, ValueError, VaExportError) as error:
            _LOG.warning("the cached engine %s is dropped: %s", self._engine(digest), error)
            self._drop(digest)
            return None
        except OSError as error:  # no place for it where it is wanted; building it will say so
            _LOG.warning("the cached engine %s cannot be put to use: %s", self._engine(digest), error)
            return None
        finally:
            placed.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            os.utime(entry)  # its age decides what goes first
        return Obtained(found.info, found.sha256, reused=True)

    def _store(self, key: CacheKey, built: Obtained, destination: Path) -> None:
        """Keep a built engine. A disk that has no room for a copy, or any other trouble, leaves the cache as it is."""
        engine, entry = self._engine(key.digest), self._entry(key.digest)
        partial = self._partial(key.digest)
        if built.info.size_bytes > self.max_bytes:
            return
        try:
            self._drop(key.digest)
            _link_or_copy(destination, partial)
            partial.replace(engine)
            partial.write_bytes(encode(Entry(dict(key.ingredients), built.sha256, built.info)))
            partial.replace(entry)
        except OSError as error:
            _LOG.warning("the engine is not kept in the cache: %s", error)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    def _drop(self, digest: str) -> None:
        # The entry first: without it nothing counts.
        for path in (self._entry(digest), self._engine(digest), self._partial(digest)):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _evict(self, keep: str) -> None:
        """Drop the least recently used beyond the bound, and what killed processes left; an engine that is in use by
        another process stays, as does every file whose name is not one of ours."""
        with contextlib.suppress(OSError):
            ours = {match.group(1) for path in self.directory.iterdir() if (match := _OURS.fullmatch(path.name))}
            total = sum(self._size(digest) for digest in ours)
            for last_use, digest in sorted((self._last_use(digest), digest) for digest in ours - {keep}):
                if last_use != _NEVER and total <= self.max_bytes:
                    break
                with contextlib.suppress(Timeout, OSError), self._locked(digest, wait=False):
                    if self._last_use(digest) == last_use:  # nobody has stored or used it meanwhile
                        total -= self._size(digest)
                        self._drop(digest)

    def _size(self, digest: str) -> int:
        engine = self._engine(digest)
        return engine.stat().st_size if engine.is_file() else 0

    def _last_use(self, digest: str) -> int:
        """Nanoseconds, or `_NEVER` for what is no whole entry."""
        entry = self._entry(digest)
        return entry.stat().st_mtime_ns if entry.is_file() else _NEVER


def build_only(destination: Path, build: Callable[[], EngineInfo]) -> Obtained:
    """Build without a cache."""
    return Obtained(build(), sha256(destination), reused=False)


def _link_or_copy(source: Path, destination: Path) -> None:
    """One file under two names where both lie on one file system that can, else a copy, if the disk has room to spare.

    Raises:
        OSError: neither.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    destination.unlink(missing_ok=True)
    try:
        os.link(source, destination)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without links
        size, free = source.stat().st_size, shutil.disk_usage(destination.parent).free
        if 2 * size > free:
            raise OSError(f"a copy of {size} bytes would leave too little of {free} free bytes") from None
        shutil.copyfile(source, destination)
