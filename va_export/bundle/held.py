"""The files of a bundle, held open from the moment at which the bundle is opened.

What is read later is what was there then, whatever has become of the directory's name: files are read through their
descriptors, and readers that must have names get them below the directory's own descriptor, where a bundle that took
its place does not appear. A file whose content was exchanged in the meantime is refused by name.

A file is known by device, inode, size and time of change. An edit in place that keeps the size and puts the time back
is not seen: replace bundles by renaming, as `va-export --overwrite` does.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from va_export.errors import VaExportError

_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".xz", ".bz2", ".zst", ".7z", ".rar")
_COPY = "copy or export the bundle again"
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass
class _Held:
    descriptor: int
    identity: tuple[int, int, int, int]
    digest: str | None = None


class HeldFiles:
    """A bundle's directory and those of its files that were given to `hold`. Descriptors close with the last reference.

    Args:
        directory: may itself be a link; what it leads to at this moment is the bundle.

    Raises:
        VaExportError: no directory there, or an archive.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._root = _open_directory(directory)
        self._held: dict[str, _Held] = {}
        self._watched: set[str] = set()
        self._descriptors = [self._root]
        weakref.finalize(self, _close, self._descriptors)

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Around an answer: what was computed while a file was edited may be of both contents.

        Raises:
            VaExportError: a file that is read again and again was edited.
        """
        self.check_open()
        yield
        self.check_open()

    def hold(self, name: str) -> int:
        """Open a file; its size in bytes.

        Raises:
            VaExportError: it is missing, cannot be read, is no regular file, or a link leads out of the bundle.
        """
        handle = -1
        try:
            # O_PATH opens without an effect, whatever lies there: FIFOs do not wait, devices do not stir.
            handle = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=self._root)
            self._check_kind(name, handle)
            descriptor = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise self._fault(f"the bundle lacks {name}", fix=_COPY) from error
        except OSError as error:
            raise self._fault(f"{name} cannot be opened: {error.strerror}", name, _COPY) from error
        finally:
            if handle >= 0:
                os.close(handle)
        self._descriptors.append(descriptor)
        self._held[name] = _Held(descriptor, _identity(descriptor))
        return self.size(name)

    def _check_kind(self, name: str, handle: int) -> None:
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):
            raise VaExportError(
                f"{name} is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, where a bundle has a file",
                where=self.directory / name,
                fix="do not use this bundle",
            )
        # Where all links on the way have led to.
        place, root = Path(f"/proc/self/fd/{handle}").readlink(), Path(f"/proc/self/fd/{self._root}").readlink()
        if not place.is_relative_to(root):
            raise VaExportError(
                f"{name} is a link to outside of the bundle: {place}",
                where=self.directory / name,
                fix="do not use this bundle; if the links are your own, copy it with `cp -rL`, which resolves them",
            )

    def size(self, name: str) -> int:
        """Bytes of a file that was held."""
        return self._held[name].identity[2]

    def path(self, name: str) -> Path:
        """A path of the very file that was opened, for this process; errors show the file's own."""
        return Path(f"/proc/self/fd/{self._held[name].descriptor}")

    def read(self, name: str, most_bytes: int | None = None) -> bytes:
        """The content of a file that was held.

        Raises:
            VaExportError: it has changed since, or has more than `most_bytes`.
        """
        size = self.size(name)
        if most_bytes is not None and size > most_bytes:
            what = f"{name} has {size} bytes, more than the {most_bytes} that such a file can have"
            raise self._fault(what, name, _COPY)
        with self.path(name).open("rb") as stream:
            content = stream.read(size)
        self.check(name)
        return content

    def text(self, name: str, most_bytes: int | None = None) -> str:
        """The same as text.

        Raises:
            VaExportError: also where it is not UTF-8.
        """
        try:
            return self.read(name, most_bytes).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._fault(f"{name} is not UTF-8: {error}", name, _COPY) from error

    def sha256(self, name: str) -> str:
        """Hex digest of a file that was held; read once.

        Raises:
            VaExportError: it has changed since it was opened.
        """
        held = self._held[name]
        if held.digest is None:
            with self.path(name).open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            self.check(name)
            held.digest = digest
        return held.digest

    def known_sha256(self, name: str) -> str | None:
        """The digest if the file was read for it already."""
        return self._held[name].digest

    @contextlib.contextmanager
    def in_place(self, *names: str, stay_open: bool = False) -> Iterator[Path]:
        """The directory, below which the names are the files that were held, for readers that open files by name.

        Args:
            stay_open: the reader keeps files mapped; `check_open` looks at these again.

        Raises:
            VaExportError: at the start or at the end, one of the files is gone or another has its name.
        """
        place = self._check_names(names)
        try:
            yield Path(f"/proc/self/fd/{self._root}")
        except VaExportError:
            self._check_names(names)  # the better reason, if it is one
            raise
        if self._check_names(names) != place:
            raise self._fault("the bundle was moved while it was being opened")
        if stay_open:
            self._watched.update(names)

    def check_open(self) -> None:
        """Check that no file which a reader keeps mapped was edited since.

        Raises:
            VaExportError: one was. (A file that was removed keeps its content for who has it open, and is fine.)
        """
        for name in tuple(self._watched):  # another thread may open a part
            self.check(name)

    def check(self, name: str) -> None:
        """Check that a file that was held has the content that it had then.

        Raises:
            VaExportError: it was edited.
        """
        held = self._held[name]
        if _identity(held.descriptor) != held.identity:
            raise self._fault(f"{name} was changed while the bundle was open", name)

    def _check_names(self, names: tuple[str, ...]) -> str:
        """Check that the names lead to the files that were held; where the directory lies now."""
        for name in names:
            self.check(name)
            try:
                now = os.stat(name, dir_fd=self._root)
            except OSError as error:
                what = f"{name} is gone: the bundle was removed or replaced while it was open"
                raise self._fault(what, name) from error
            if (now.st_dev, now.st_ino) != self._held[name].identity[:2]:
                raise self._fault(f"{name} was replaced while the bundle was open", name)
        return str(Path(f"/proc/self/fd/{self._root}").readlink())

    def _fault(self, what: str, name: str = "", fix: str = "open the bundle again") -> VaExportError:
        return VaExportError(what, where=self.directory / name, fix=fix)


def _identity(descriptor: int) -> tuple[int, int, int, int]:
    """Device, inode, size in bytes, time of the last change of content in nanoseconds."""
    now = os.fstat(descriptor)
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns


def _open_directory(directory: Path) -> int:
    try:
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a null character in the name
        if not isinstance(error, ValueError) and directory.exists():
            archive = directory.name.lower().endswith(_ARCHIVES)
            raise VaExportError(
                f"a bundle is a directory, and this is {'an archive' if archive else 'a file'}",
                where=directory,
                fix="unpack it into a directory of its own" if archive else "give the directory that va-export printed",
            ) from error
        raise VaExportError(
            "no such bundle directory", where=directory, fix="check the path, or make one with va-export"
        ) from error
    except OSError as error:
        raise VaExportError(
            f"the bundle directory cannot be opened: {error.strerror}", where=directory, fix="check its permissions"
        ) from error


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
