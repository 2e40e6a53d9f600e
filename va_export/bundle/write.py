"""Write a bundle under a temporary name and give it its own name when it is whole."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from va_export._version import __version__
from va_export.bundle.manifest import MANIFEST_NAME, bundle_files, needed_version, sha256
from va_export.errors import VaExportError


class BundleWriter:
    """The working directory of a bundle in the making.

    Attributes:
        output: where the bundle goes.
        directory: where it is written until `commit`.
    """

    def __init__(self, output: Path, directory: Path) -> None:
        self.output = output
        self.directory = directory
        self.committed: Path | None = None
        self._digests: dict[tuple[str, int, int], str] = {}

    def path(self, relative: str) -> Path:
        """The path of a file to be written; its folder exists when this returns."""
        path = self.directory / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_json(self, relative: str, data: Any) -> Path:
        """Write a JSON file."""
        path = self.path(relative)
        path.write_text(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        return path

    def write_manifest(self, data: Mapping[str, Any]) -> None:
        """Write the manifest over all files that are there now; later files need another call."""
        files = {name: self._entry(name, path) for name, path in bundle_files(self.directory)}
        document = {
            "manifest_version": needed_version(data),
            "tool": {"name": "va-export", "version": __version__},
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **data,
            "files": files,
        }
        self.write_json(MANIFEST_NAME, document)

    def _entry(self, name: str, path: Path) -> dict[str, Any]:
        """Size and SHA-256; a file that is as it was at the last call is not read again, as it may be of many
        gigabytes."""
        stat = path.stat()
        key = (name, stat.st_size, stat.st_mtime_ns)
        if key not in self._digests:
            self._digests[key] = sha256(path)
        return {"bytes": stat.st_size, "sha256": self._digests[key]}

    def digest(self, relative: str) -> str:
        """SHA-256 of a file of the bundle, which is read once for this and the manifest together."""
        digest: str = self._entry(relative, self.directory / relative)["sha256"]
        return digest

    def record_digest(self, relative: str, digest: str) -> None:
        """Note the SHA-256 of a file that its writer has hashed, so that it is not read again."""
        stat = (self.directory / relative).stat()
        self._digests[relative, stat.st_size, stat.st_mtime_ns] = digest

    def commit(self, passed: bool) -> Path:
        """Move the bundle to its place; returns that.

        A bundle that failed its parity goes to `<output>.failed`, so that it never takes the place of a good one.
        """
        destination = self.output if passed else _failed(self.output)
        _sync(self.directory)
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
        self.committed = destination
        if previous is not None:
            shutil.rmtree(previous, ignore_errors=True)
        return destination


@contextmanager
def bundle_writer(output: Path, *, overwrite: bool) -> Iterator[BundleWriter]:
    """Open a bundle for writing; whatever was not committed is removed on the way out.

    Raises:
        VaExportError: the output exists, another run writes it now, or its folder cannot be written.
    """
    output = Path(output).resolve()
    if not output.name:
        raise VaExportError(
            "the root of the file system cannot be a bundle", where=output, fix="choose another --output"
        )
    try:
        new_parents = [parent for parent in output.parents if not parent.exists()]
        output.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output.with_name(f".{output.name}.lock"))
        lock.acquire(blocking=False)
    except Timeout as error:
        raise VaExportError(
            "another va-export is writing this bundle now",
            where=output,
            fix="wait for it, or choose another --output",
        ) from error
    except OSError as error:
        is_file = isinstance(error, FileExistsError | NotADirectoryError)
        raise VaExportError(
            f"the output folder cannot be written: {'a file has its name' if is_file else error.strerror or error}",
            where=output.parent,
            fix="choose another --output",
        ) from error
    try:
        _remove_leftovers(output)
        check_destination(output, overwrite)
        directory = output.with_name(f"{output.name}.tmp-{os.getpid()}")
        directory.mkdir()
        try:
            yield BundleWriter(output, directory)
        finally:
            shutil.rmtree(directory, ignore_errors=True)  # gone already if it was committed
    finally:
        # Before the release: afterwards another run may hold a lock on this very file.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):  # a parent that holds something now, such as the bundle, stays
            for parent in new_parents:
                parent.rmdir()


def check_destination(output: Path, overwrite: bool) -> None:
    """Check that a bundle may be written to `output`, and a failed one beside it.

    Raises:
        VaExportError: something is there that must not be replaced.
    """
    if output.exists() and not overwrite:
        raise VaExportError(
            "the output exists already", where=output, fix="choose another --output, or give --overwrite"
        )
    for place in (output, _failed(output)):
        is_bundle = (place / MANIFEST_NAME).is_file()
        if place.exists() and not is_bundle and (place.is_file() or any(place.iterdir())):
            raise VaExportError(
                "the output exists and is not a bundle, so it will not be overwritten",
                where=place,
                fix="choose another --output",
            )


def _failed(output: Path) -> Path:
    return output.with_name(output.name + ".failed")


def _remove_leftovers(output: Path) -> None:
    """Clear away what a run that was killed left behind; the lock says that no other run owns it."""
    for place in (output, _failed(output)):
        ours = re.compile(rf"{re.escape(place.name)}\.tmp-\d+|\.{re.escape(place.name)}\.replaced-\d+")
        for leftover in [path for path in output.parent.iterdir() if ours.fullmatch(path.name)]:
            if leftover.name.startswith(f".{place.name}.replaced-") and not place.exists():
                leftover.rename(place)  # killed between the two renames: the earlier bundle is still the good one
            else:
                shutil.rmtree(leftover, ignore_errors=True)


def _sync(directory: Path) -> None:
    """Flush file contents to the disk, so that a rename never outlives the data it names."""
    for _, path in bundle_files(directory):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
