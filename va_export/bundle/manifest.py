"""A bundle's table of contents: `manifest.json`, its form and its checks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from va_export.errors import VaExportError

MANIFEST_NAME = "manifest.json"
# 1: the decoder is one component. 2: it may be several, each with its `layers`. A bundle is written with the lowest
# version that it needs, so that whoever reads 1 reads every bundle in which nothing is new.
MANIFEST_VERSIONS = (1, 2)
UNFINISHED = "unfinished"
_CHUNK = 1 << 22
_REQUIRED = ("tool", "model", "precision", "attention", "components", "limits", "gains", "score", "files")


@dataclass(frozen=True)
class Manifest:
    """The parsed manifest of one bundle directory.

    Attributes:
        directory: the bundle.
        data: the JSON document, version checked and required keys present.
    """

    directory: Path
    data: Mapping[str, Any]

    def path(self, relative: str) -> Path:
        """A file of the bundle, by its name in the manifest.

        Raises:
            VaExportError: the manifest lists no such file, so that its place and its size were never checked.
        """
        if relative not in self.files:
            raise VaExportError(
                f"the manifest does not list {relative!r} among the bundle's files",
                where=self.directory / MANIFEST_NAME,
                fix="export the bundle again",
            )
        return self.directory / relative

    @property
    def files(self) -> Mapping[str, Mapping[str, Any]]:
        """Relative name → {bytes, sha256}."""
        files: Mapping[str, Mapping[str, Any]] = self.data["files"]
        return files


def needed_version(data: Mapping[str, Any]) -> int:
    """The lowest manifest version that can say what `data` says."""
    return 2 if any("layers" in entry for entry in data.get("components", {}).values()) else 1


def read_manifest(directory: Path, *, unfinished_too: bool = False) -> Manifest:
    """Read and check a bundle's manifest; sizes of all files are compared, their hashes are not.

    Args:
        unfinished_too: for the run that is making the bundle.

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
        raise VaExportError(
            f"the directory holds no {MANIFEST_NAME}, so it is not a bundle",
            where=directory,
            fix="give the directory that va-export printed",
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise VaExportError(
            f"the manifest cannot be read: {error}", where=path, fix="export the bundle again"
        ) from error
    _check_form(data, path)
    if data.get(UNFINISHED) and not unfinished_too:
        raise VaExportError(
            "the export of this bundle has not ended",
            where=directory,
            fix="give the same va-export command again, which continues, and use the bundle at its --output",
        )
    manifest = Manifest(directory, data)
    _check_sizes(manifest)
    return manifest


def _check_form(data: Any, path: Path) -> None:
    version = data.get("manifest_version") if isinstance(data, dict) else None
    if type(version) is not int or version not in MANIFEST_VERSIONS:
        raise VaExportError(
            f"manifest version {version!r} is unknown; this va-export reads {MANIFEST_VERSIONS[0]} to"
            f" {MANIFEST_VERSIONS[-1]}",
            where=path,
            fix="open the bundle with the va-export that made it, or export it again",
        )
    if missing := [key for key in _REQUIRED if key not in data]:
        raise VaExportError(f"the manifest lacks {', '.join(missing)}", where=path, fix="export the bundle again")
    tables = ("model", "components", "limits", "gains", "score", "files")
    if wrong := [key for key in tables if not isinstance(data[key], dict)]:
        raise VaExportError(
            f"{', '.join(wrong)} of the manifest must be tables", where=path, fix="export the bundle again"
        )
    for name, entry in data["files"].items():
        if not isinstance(entry, dict) or type(entry.get("bytes")) is not int or type(entry.get("sha256")) is not str:
            raise VaExportError(
                f"the manifest does not give size and SHA-256 of {name}", where=path, fix="export the bundle again"
            )
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name:
            raise VaExportError(
                f"the manifest names a file outside of the bundle: {name}",
                where=path,
                fix="do not use this bundle",
            )


def _check_sizes(manifest: Manifest) -> None:
    for name, entry in manifest.files.items():
        path = manifest.path(name)
        if not path.is_file():
            raise VaExportError(
                f"the bundle lacks {name}", where=manifest.directory, fix="copy or export the bundle again"
            )
        if path.stat().st_size != entry["bytes"]:
            raise VaExportError(
                f"{name} has {path.stat().st_size} bytes; the manifest says {entry['bytes']}",
                where=manifest.directory,
                fix="copy or export the bundle again",
            )


def verify_hashes(manifest: Manifest) -> None:
    """Compare the SHA-256 of every file with the manifest.

    Raises:
        VaExportError: naming the first file that differs.
    """
    for name, entry in manifest.files.items():
        if sha256(manifest.path(name)) != entry["sha256"]:
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
