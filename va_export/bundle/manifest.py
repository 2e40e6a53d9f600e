"""A bundle's table of contents as it lies on disk: read, checked, and asked for files."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from va_export.bundle.document import ComponentEntry, ManifestDocument
from va_export.bundle.held import HeldFiles
from va_export.documents import MAX_BYTES, convert, parse
from va_export.errors import VaExportError

MANIFEST_NAME = "manifest.json"
# 3: components say what they take and give, the decoder takes position ids, and processing.json says all that a host
# does to frames and a question. Graphs of 1 and 2 count positions themselves, so they are exported again.
MANIFEST_VERSION = 3
JOURNAL_NAME = "journal.jsonl"  # beside a bundle in the making
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Manifest:
    """The manifest of one bundle directory.

    Attributes:
        directory: the bundle.
        data: the document.
    """

    directory: Path
    data: ManifestDocument
    _opened: HeldFiles | None = field(default=None, compare=False, repr=False)

    @cached_property
    def held(self) -> HeldFiles:
        """The listed files, open since the manifest was read; all reading goes through them."""
        held = self._opened or HeldFiles(self.directory)
        for name in self.data.files:
            held.hold(name)
        return held

    def path(self, relative: str) -> Path:
        """Where a file of the bundle lies, by its name in the manifest; to be told, not to be read: see `held`.

        Raises:
            VaExportError: the manifest lists no such file, so that its place and its size were never checked.
        """
        if relative not in self.data.files:
            raise VaExportError(
                f"the manifest does not list {relative!r} among the bundle's files",
                where=self.directory / MANIFEST_NAME,
                fix="export the bundle again",
            )
        return self.directory / relative

    def component(self, name: str) -> ComponentEntry:
        """One component.

        Raises:
            VaExportError: the bundle was exported without it.
        """
        if name not in self.data.components:
            raise VaExportError(
                f"this bundle has no {name}: it was exported with --components {','.join(self.data.components)}",
                where=self.directory,
                fix="export all components to run the whole model",
            )
        return self.data.components[name]


def read_manifest(directory: Path) -> Manifest:
    """Read and check a bundle's manifest; sizes of all files are compared, their hashes are not.

    Raises:
        VaExportError: no bundle there, one that is not finished, an unknown manifest version, a missing file, a wrong
            size, or a name that leaves the directory.
    """
    path = directory / MANIFEST_NAME
    held = HeldFiles(directory)
    if not path.exists():
        raise _no_manifest(directory)
    held.hold(MANIFEST_NAME)
    what, fix = "the manifest", "copy or export the bundle again"
    data = parse(held.read(MANIFEST_NAME, MAX_BYTES), what=what, where=path, fix=fix)
    if (version := data.get("manifest_version") if isinstance(data, dict) else None) != MANIFEST_VERSION:
        raise _other_version(version, data, path)
    manifest = Manifest(directory, convert(data, ManifestDocument, what=what, where=path, fix=fix), held)
    _check_names(manifest.data.files, path)
    _check_sizes(manifest)
    with held.in_place(MANIFEST_NAME):
        pass  # the files are those of the manifest that was read, not of one that took its place meanwhile
    return manifest


def _check_names(names: Collection[str], path: Path) -> None:
    for name in names:
        if fault := _fault_of_name(name):
            raise VaExportError(fault, where=path, fix="do not use this bundle")
    # On some file systems these would be one file.
    if len({unicodedata.normalize("NFC", name).casefold() for name in names}) < len(names):
        raise VaExportError(
            "the manifest lists a file twice, in different spellings", where=path, fix="do not use this bundle"
        )


def _fault_of_name(name: str) -> str | None:
    """What is wrong with the name of a file of a bundle."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name:
        return f"the manifest names a file outside of the bundle: {name!r}"
    if not name.isprintable() or pure.as_posix() != name or name in (".", MANIFEST_NAME):
        return f"the manifest lists a file under a name that no bundle has: {name!r}"
    return None


def _no_manifest(directory: Path) -> VaExportError:
    if (directory.parent / JOURNAL_NAME).is_file():
        return VaExportError(
            "the export of this bundle has not ended",
            where=directory,
            fix="give the same va-export command again, which continues, and use the bundle at its --output",
        )
    return VaExportError(
        f"the directory holds no {MANIFEST_NAME}, so it is not a bundle",
        where=directory,
        fix="give the directory that va-export printed",
    )


def _other_version(version: Any, data: Any, path: Path) -> VaExportError:
    """Bundles of earlier versions are made again; the command is put together from what they say of themselves."""
    if version not in (1, 2):
        return VaExportError(
            f"manifest version {version!r} is unknown; this va-export reads {MANIFEST_VERSION}",
            where=path,
            fix="open the bundle with the va-export that made it, or export it again",
        )
    model = data["model"] if isinstance(data.get("model"), dict) else {}
    source = model.get("source") if model.get("weights") == "checkpoint" else model.get("name")
    return VaExportError(
        f"this bundle is of manifest version {version}, of an earlier va-export: its decoder counts positions itself",
        where=path,
        fix=f"make it again: va-export --model {source} --precision {data.get('precision', 'fp16')}"
        f" --output {path.parent} --overwrite",
    )


def _check_sizes(manifest: Manifest) -> None:
    for name, entry in manifest.data.files.items():
        if (size := manifest.held.size(name)) != entry.bytes:
            raise VaExportError(
                f"{name} has {size} bytes; the manifest says {entry.bytes}",
                where=manifest.directory,
                fix="copy or export the bundle again",
            )


def verify_hashes(manifest: Manifest) -> None:
    """Compare the SHA-256 of every file with the manifest.

    Raises:
        VaExportError: naming the first file that differs.
    """
    for name, entry in manifest.data.files.items():
        if manifest.held.sha256(name) != entry.sha256:
            raise VaExportError(
                f"{name} is not the file that was exported: its SHA-256 differs from the manifest's",
                where=manifest.directory,
                fix="copy or export the bundle again",
            )


def sha256(path: Path) -> str:
    """Hex digest of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def bundle_files(directory: Path) -> Iterator[tuple[str, Path]]:
    """Every file of a bundle but the manifest, as (name, path), in order of name."""
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name != MANIFEST_NAME:
            yield name, path
