"""Write a bundle in a workspace beside its place, and move it there when it is whole.

The workspace of `OUTPUT` is `OUTPUT.partial`: the bundle in the making, and the journal of what is done (`journal.py`).
A run that is killed leaves it, and the same command goes on from it.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from va_export.bundle.document import FileEntry, ManifestDocument
from va_export.bundle.journal import Journal, Record, sync_file, sync_folder
from va_export.bundle.manifest import JOURNAL_NAME, MANIFEST_NAME, Manifest, bundle_files, sha256
from va_export.documents import decode, encode
from va_export.errors import VaExportError

_SUFFIX = ".partial"


class Inputs(Record, frozen=True, tag="inputs"):
    """The first record: what the work is on, name → plain data."""

    inputs: dict[str, Any]


class File(Record, frozen=True, tag="file"):
    """A file that belongs to the bundle; if it is done, with its size, its time in ns and its SHA-256."""

    name: str
    bytes: int = 0
    time: int = 0
    sha256: str = ""


class BundleWriter:
    """The working directory of a bundle in the making.

    Attributes:
        output: where the bundle goes.
        directory: where it is written until `commit`.
        journal: what is done; `begin` decides whether that of an earlier run counts.
    """

    def __init__(self, output: Path, workspace: Path) -> None:
        self.output = output
        self.workspace = workspace
        self.directory = workspace / "bundle"
        self.journal = Journal(workspace / JOURNAL_NAME)
        self.committed: Path | None = None
        self._abandoned = False
        self._digests: dict[tuple[str, int, int], str] = {}

    def begin(self, inputs: Mapping[str, Any]) -> list[str]:
        """Continue the unfinished work of an earlier run if it was on the same inputs, or else start anew.

        Of an earlier run only the files that its journal vouches for stay.

        Args:
            inputs: name → plain data, whatever the lasting files depend on.

        Returns:
            The names of the inputs that have changed since the earlier run; empty if none have, or there was none.
        """
        now = decode(encode(Inputs(dict(inputs))), Inputs, what="", where="", fix="").inputs
        earlier = self.journal.of(Inputs)
        changed = []
        if earlier:
            before = earlier[0].inputs
            changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if not earlier or changed:
            self._clear()
            self.journal.append(Inputs(now))
        vouched = {record.name for record in self.journal.of(File)}
        for name, path in [*bundle_files(self.directory), (MANIFEST_NAME, self.directory / MANIFEST_NAME)]:
            if name not in vouched:
                path.unlink(missing_ok=True)
        return changed

    def _clear(self) -> None:
        shutil.rmtree(self.workspace)
        self.directory.mkdir(parents=True)
        self.journal = Journal(self.journal.path)

    def vouch(self, *names: str) -> None:
        """Flush files whose content may still change and note in the journal that they belong to the bundle."""
        for name in names:
            sync_file(self.directory / name)
            sync_folder((self.directory / name).parent)
            self.journal.append(File(name))

    def finish(self, name: str, digest: str) -> None:
        """Flush a file that is done and note its size, time and SHA-256 in the journal."""
        path = self.directory / name
        sync_file(path)
        sync_folder(path.parent)
        stat = path.stat()
        self._digests[name, stat.st_size, stat.st_mtime_ns] = digest
        self.journal.append(File(name, stat.st_size, stat.st_mtime_ns, digest))

    def is_finished(self, name: str) -> bool:
        """Whether an earlier run finished this file and it is still as it was then. One of the same size and another
        time is read."""
        path = self.directory / name
        records = self.journal.of(File, name=name)
        if not records or not records[-1].sha256 or not path.is_file():
            return False
        record, stat = records[-1], path.stat()
        if stat.st_size != record.bytes:
            return False
        key = (name, stat.st_size, stat.st_mtime_ns)
        if key not in self._digests:
            self._digests[key] = record.sha256 if stat.st_mtime_ns == record.time else sha256(path)
        return self._digests[key] == record.sha256

    def abandon(self) -> None:
        """Nothing that was done so far is of any use: the workspace is removed on the way out."""
        self._abandoned = True

    @property
    def is_worth_keeping(self) -> bool:
        """Whether a later run could go on from here."""
        return not self._abandoned and bool(self.journal.of(File))

    def path(self, relative: str) -> Path:
        """The path of a file to be written; its folder exists when this returns."""
        path = self.directory / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_json(self, relative: str, data: Any) -> Path:
        """Write a document."""
        path = self.path(relative)
        path.write_bytes(encode(data))
        return path

    def manifest(self, document: ManifestDocument) -> Manifest:
        """`document` over all files that are there now, and so a bundle that this run can open. It is on the disk only
        when `seal` has written it: until then nobody takes the folder for a bundle."""
        files = {name: self._entry(name, path) for name, path in bundle_files(self.directory)}
        return Manifest(self.directory, msgspec.structs.replace(document, files=files))

    def seal(self, document: ManifestDocument) -> None:
        """Write the manifest over all files, as the last of them."""
        self.path(MANIFEST_NAME).write_bytes(encode(self.manifest(document).data))

    def _entry(self, name: str, path: Path) -> FileEntry:
        """Size and SHA-256; a file that is as it was at the last call is not read again, as it may be of many
        gigabytes."""
        stat = path.stat()
        key = (name, stat.st_size, stat.st_mtime_ns)
        if key not in self._digests:
            self._digests[key] = sha256(path)
        return FileEntry(bytes=stat.st_size, sha256=self._digests[key])

    def digest(self, relative: str) -> str:
        """SHA-256 of a file of the bundle, which is read once for this and the manifest together."""
        return self._entry(relative, self.directory / relative).sha256

    def record_digest(self, relative: str, digest: str) -> None:
        """Note the SHA-256 of a file that its writer has hashed, so that it is not read again."""
        stat = (self.directory / relative).stat()
        self._digests[relative, stat.st_size, stat.st_mtime_ns] = digest

    def commit(self, passed: bool) -> Path:
        """Move the bundle to its place; returns that.

        A bundle that failed its parity goes to `<output>.failed`, so that it never takes the place of a good one.
        """
        destination = self.output if passed else _failed(self.output)
        for path in [path for _, path in bundle_files(self.directory)] + [self.directory / MANIFEST_NAME]:
            if path.is_file():
                sync_file(path)
        previous = None
        if destination.exists():
            previous = destination.with_name(f".{destination.name}.replaced-{os.getpid()}")
            destination.rename(previous)
        try:
            self.directory.rename(destination)
        except BaseException:
            if previous is not None and not destination.exists():
                previous.rename(destination)
            raise
        sync_folder(destination.parent)
        self.committed = destination
        if previous is not None:
            shutil.rmtree(previous, ignore_errors=True)
        return destination


@contextmanager
def bundle_writer(output: Path, *, overwrite: bool, resume: bool = True) -> Iterator[BundleWriter]:
    """Open a bundle for writing.

    What was not committed stays in the workspace if a later run can go on from it (the exception that ends this run
    then says so in a note), and is removed otherwise.

    Args:
        resume: False removes what an earlier run left.

    Raises:
        VaExportError: the output exists, another run writes it now, or its folder cannot be written.
    """
    output = Path(output).resolve()
    if not output.name:
        raise VaExportError(
            "the root of the file system cannot be a bundle", where=output, fix="choose another --output"
        )
    new_parents = [parent for parent in output.parents if not parent.exists()]
    with _locked(output, new_parents):
        _remove_leftovers(output)
        check_destination(output, overwrite)
        workspace = partial_path(output)
        if workspace.exists() and not resume:
            shutil.rmtree(workspace)
        (workspace / "bundle").mkdir(parents=True, exist_ok=True)
        writer = BundleWriter(output, workspace)
        try:
            yield writer
        except BaseException as error:
            if writer.is_worth_keeping:
                error.add_note(
                    f"What was written so far is kept in {workspace}: the same command continues from there,"
                    " --no-resume starts anew, and removing the folder frees its space."
                )
            raise
        finally:
            if writer.committed is not None or not writer.is_worth_keeping:
                shutil.rmtree(workspace, ignore_errors=True)


def partial_path(output: Path) -> Path:
    """Where the unfinished work of a bundle lies."""
    return output.with_name(output.name + _SUFFIX)


@contextmanager
def _locked(output: Path, new_parents: Iterable[Path]) -> Iterator[None]:
    """Keep other runs away from `output`; the kernel drops the lock of a run that is killed."""
    path = output.with_name(f".{output.name}.lock")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as error:
        is_file = isinstance(error, FileExistsError | NotADirectoryError)
        raise VaExportError(
            f"the output folder cannot be written: {'a file has its name' if is_file else error.strerror or error}",
            where=output.parent,
            fix="choose another --output",
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The owner removes the file before it lets go: a lock on a file without a name keeps nobody away.
            if not path.exists() or not os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                raise BlockingIOError
        except BlockingIOError as error:
            raise VaExportError(
                "another va-export is writing this bundle now",
                where=output,
                fix="wait for it, or choose another --output",
            ) from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            with suppress(OSError):  # a parent that holds something now, such as the bundle, stays
                for parent in new_parents:
                    parent.rmdir()


def check_destination(output: Path, overwrite: bool) -> None:
    """Check that a bundle may be written to `output`, and a failed one beside it.

    Raises:
        VaExportError: something is there that must not be replaced.
    """
    for place in (output, _failed(output)):
        is_bundle = (place / MANIFEST_NAME).is_file()
        if place.exists() and not is_bundle and (not place.is_dir() or any(place.iterdir())):
            raise VaExportError(
                "the output exists and is not a bundle, so it will not be overwritten",
                where=place,
                fix="choose another --output",
            )
    if output.exists() and not overwrite:
        raise VaExportError(
            "the output exists already", where=output, fix="choose another --output, or give --overwrite"
        )


def _failed(output: Path) -> Path:
    return output.with_name(output.name + ".failed")


def _remove_leftovers(output: Path) -> None:
    """Put right what a run left that was killed while it moved its bundle; the lock says that no other run owns it."""
    for place in (output, _failed(output)):
        ours = re.compile(rf"\.{re.escape(place.name)}\.replaced-\d+")
        for leftover in [path for path in output.parent.iterdir() if ours.fullmatch(path.name)]:
            if not place.exists():
                leftover.rename(place)  # killed between the two renames: the earlier bundle is still the good one
            else:
                shutil.rmtree(leftover, ignore_errors=True)
    workspace = partial_path(output)
    if workspace.is_dir() and not (workspace / "bundle").is_dir():
        shutil.rmtree(workspace)  # killed after the bundle had been moved away from it
