"""SHA-256 of the checkpoint's files, computed beside the export, which is busy with other things meanwhile."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from va_export.bundle.document import FileEntry
from va_export.bundle.journal import Journal, Record
from va_export.bundle.manifest import sha256
from va_export.checkpoint.safetensors_header import header_sha256
from va_export.errors import VaExportError

if TYPE_CHECKING:
    from va_export.checkpoint.files import Checkpoint
    from va_export.progress import Stage

_CHUNK = 8 << 20
# Files up to this size are compared by content; of larger ones size, times and header tell whether they were edited.
_READ_WHOLE = 64 << 20


class Hashed(Record, frozen=True, tag="checkpoint"):
    """A checkpoint's file, in the journal of an unfinished export."""

    name: str
    bytes: int
    sha256: str


class CheckpointHashes:
    """The digests of a checkpoint's files, one after another in a thread; `hashing` makes one."""

    def __init__(self, checkpoint: Checkpoint, journal: Journal) -> None:
        self._journal = journal
        self._total = sum(file.size for file in checkpoint.files())
        self._entries: dict[str, FileEntry] = {}
        self._todo = []
        self._before = {file.path: identity(file.path) for file in checkpoint.files()}
        for file in checkpoint.files():
            if known := journal.of(Hashed, name=file.path.name):  # an earlier run's, on the same files
                self._entries[file.path.name] = FileEntry(bytes=known[-1].bytes, sha256=known[-1].sha256)
            else:
                self._todo.append(file.path)
        self._done = sum(entry.bytes for entry in self._entries.values())
        self._failure: VaExportError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="checkpoint hashes", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End at once, with or without a result."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def wait(self, stage: Stage) -> dict[str, FileEntry]:
        """Wait for the digests; returns file name → bytes and sha256.

        Raises:
            VaExportError: a file cannot be read, or was edited meanwhile.
        """
        count, seen = stage.byte_counter(self._total), 0
        while self._thread.is_alive():
            self._thread.join(0.2)
            done = self._done
            count(done - seen)
            seen = done
        if self._failure is not None:
            raise self._failure
        for path, before in self._before.items():
            if not path.exists() or identity(path) != before:
                raise VaExportError(
                    "the checkpoint was edited while it was exported", where=path, fix="run the export again"
                )
        # Only now, by the thread that writes the journal's other records.
        for name, entry in self._entries.items():
            if not self._journal.of(Hashed, name=name):
                self._journal.append(Hashed(name, entry.bytes, entry.sha256))
        return dict(sorted(self._entries.items()))

    def _run(self) -> None:
        try:
            for path in self._todo:
                digest = hashlib.sha256()
                with path.open("rb", buffering=0) as stream:
                    while content := stream.read(_CHUNK):
                        if self._stop.is_set():
                            return
                        digest.update(content)
                        self._done += len(content)
                self._entries[path.name] = FileEntry(bytes=path.stat().st_size, sha256=digest.hexdigest())
        except OSError as error:
            self._failure = VaExportError(
                f"the file cannot be read: {error.strerror}", where=path, fix="check the disk"
            )


@contextmanager
def hashing(checkpoint: Checkpoint, journal: Journal) -> Iterator[CheckpointHashes]:
    """Hash a checkpoint's files while the body runs; `CheckpointHashes.wait` gives the result."""
    hashes = CheckpointHashes(checkpoint, journal)
    hashes.start()
    try:
        yield hashes
    finally:
        hashes.stop()


def identity(path: Path) -> dict[str, Any]:
    """Plain data that changes when a file of weights does."""
    stat = path.stat()
    if stat.st_size <= _READ_WHOLE:
        return {"bytes": stat.st_size, "sha256": sha256(path)}
    # The time of the last change of the inode cannot be set, as that of the content can.
    times = {"modified": stat.st_mtime_ns, "changed": stat.st_ctime_ns}
    return {"bytes": stat.st_size, **times, "header_sha256": header_sha256(path)}
