"""A bundle's table of contents: `manifest.json`, its form and its checks."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from va_export.bundle.held import HeldFiles
from va_export.errors import VaExportError

MANIFEST_NAME = "manifest.json"
# 1: the decoder is one component. 2: it may be several, each with its `layers`. A bundle is written with the lowest
# version that it needs, so that whoever reads 1 reads every bundle in which nothing is new.
MANIFEST_VERSIONS = (1, 2)
UNFINISHED = "unfinished"
_CHUNK = 1 << 22
_MOST_BYTES = 1 << 26
_REQUIRED = ("tool", "model", "precision", "attention", "components", "limits", "gains", "score", "files")


@dataclass(frozen=True)
class Manifest:
    """The parsed manifest of one bundle directory.

    Attributes:
        directory: the bundle.
        data: the JSON document, version checked and required keys present.
        held: the listed files, open since the manifest was read; all reading goes through them.
    """

    directory: Path
    data: Mapping[str, Any]
    held: HeldFiles

    def text(self, relative: str) -> str:
        """The content of a file of the bundle.

        Raises:
            VaExportError: the manifest does not list it, or it is no text, or not what it was.
        """
        self.path(relative)
        return self.held.text(relative)

    def path(self, relative: str) -> Path:
        """Where a file of the bundle lies, by its name in the manifest; to be told, not to be read: see `held`.

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
    held = HeldFiles(directory)
    if not path.exists():
        raise VaExportError(
            f"the directory holds no {MANIFEST_NAME}, so it is not a bundle",
            where=directory,
            fix="give the directory that va-export printed",
        )
    held.hold(MANIFEST_NAME)
    try:
        data = json.loads(held.text(MANIFEST_NAME, _MOST_BYTES), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
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
    manifest = Manifest(directory, data, held)
    _hold_files(manifest)
    return manifest


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; one that says two things of a name would be read differently by different readers."""
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a key stands twice in one table")
    return table


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
        if fault := _fault_of_name(name):
            raise VaExportError(fault, where=path, fix="do not use this bundle")
    # On some file systems these would be one file.
    if len({unicodedata.normalize("NFC", name).casefold() for name in data["files"]}) < len(data["files"]):
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


def _hold_files(manifest: Manifest) -> None:
    """Open all files, and compare their sizes with the manifest's."""
    for name, entry in manifest.files.items():
        size = manifest.held.hold(name)
        if size != entry["bytes"]:
            raise VaExportError(
                f"{name} has {size} bytes; the manifest says {entry['bytes']}",
                where=manifest.directory,
                fix="copy or export the bundle again",
            )
    with manifest.held.in_place(MANIFEST_NAME):
        pass  # the files are those of the manifest that was read, not of one that took its place meanwhile


def verify_hashes(manifest: Manifest) -> None:
    """Compare the SHA-256 of every file with the manifest.

    Raises:
        VaExportError: naming the first file that differs.
    """
    for name, entry in manifest.files.items():
        if manifest.held.sha256(name) != entry["sha256"]:
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
