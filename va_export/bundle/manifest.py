"""A bundle's table of contents as it lies on disk: read, checked, and asked for files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from va_export.bundle.document import ComponentEntry, ManifestDocument
from va_export.documents import convert, parse, read_bytes
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

    def path(self, relative: str) -> Path:
        """A file of the bundle, by its name in the manifest.

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
    if not directory.is_dir():
        raise VaExportError(
            "no such bundle directory", where=directory, fix="check the path, or make one with va-export"
        )
    if not path.is_file():
        raise _no_manifest(directory)
    what, fix = "the manifest", "copy or export the bundle again"
    data = parse(read_bytes(path, what=what, fix=fix), what=what, where=path, fix=fix)
    if (version := data.get("manifest_version") if isinstance(data, dict) else None) != MANIFEST_VERSION:
        raise _other_version(version, data, path)
    manifest = Manifest(directory, convert(data, ManifestDocument, what=what, where=path, fix=fix))
    for name in manifest.data.files:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name:
            raise VaExportError(
                f"the manifest names a file outside of the bundle: {name!r}", where=path, fix="do not use this bundle"
            )
    _check_sizes(manifest)
    return manifest


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
        path = manifest.path(name)
        if not path.is_file():
            raise VaExportError(
                f"the bundle lacks {name}", where=manifest.directory, fix="copy or export the bundle again"
            )
        if path.stat().st_size != entry.bytes:
            raise VaExportError(
                f"{name} has {path.stat().st_size} bytes; the manifest says {entry.bytes}",
                where=manifest.directory,
                fix="copy or export the bundle again",
            )


def verify_hashes(manifest: Manifest) -> None:
    """Compare the SHA-256 of every file with the manifest.

    Raises:
        VaExportError: naming the first file that differs.
    """
    for name, entry in manifest.data.files.items():
        if sha256(manifest.path(name)) != entry.sha256:
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
