"""Reading a bundle's manifest: damage and malice are refused when the bundle is opened."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from command_line import va_export
from documents_made import manifest_document
from refusals import refused

from va_export.bundle.document import FileEntry
from va_export.bundle.manifest import bundle_files, read_manifest, sha256, verify_hashes
from va_export.bundle.write import bundle_writer

EARLIER = Path(__file__).parents[1] / "data" / "bundle_0.1.0"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of two files."""
    with bundle_writer(tmp_path / "b", overwrite=False) as writer:
        writer.path("onnx/a.onnx").write_bytes(b"graph")
        writer.path("config.json").write_bytes(b"{}")
        writer.seal(manifest_document())
        return writer.commit(passed=True)


def change(bundle: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = bundle / "manifest.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def test_reads_what_was_written(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    verify_hashes(manifest)
    assert set(manifest.data.files) == {"onnx/a.onnx", "config.json"}
    assert manifest.data.files["onnx/a.onnx"] == FileEntry(bytes=5, sha256=hashlib.sha256(b"graph").hexdigest())
    assert manifest.data == msgspec.structs.replace(manifest_document(), files=manifest.data.files)
    assert manifest.path("onnx/a.onnx").read_bytes() == b"graph"
    assert [name for name, _ in bundle_files(bundle)] == ["config.json", "onnx/a.onnx"]


def test_a_hash_of_a_large_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 40_000  # several chunks, the last one short
    (tmp_path / "f").write_bytes(content)
    assert sha256(tmp_path / "f") == hashlib.sha256(content).hexdigest()


def test_a_byte_more_is_found_when_opening(bundle: Path) -> None:
    (bundle / "onnx" / "a.onnx").write_bytes(b"graph!")
    with refused(bundle, "onnx/a.onnx", 6, 5):
        read_manifest(bundle)


def test_a_changed_byte_is_found_by_its_hash(bundle: Path) -> None:
    (bundle / "onnx" / "a.onnx").write_bytes(b"grapH")
    with refused(bundle, "onnx/a.onnx"):
        verify_hashes(read_manifest(bundle))


def test_a_missing_file_is_found(bundle: Path) -> None:
    (bundle / "config.json").unlink()
    with refused(bundle, "config.json"):
        read_manifest(bundle)


@pytest.mark.parametrize("version", [4, 0, "3", True, None])
def test_an_unknown_version_is_refused(bundle: Path, version: object) -> None:
    change(bundle, lambda data: data.update(manifest_version=version))
    with refused(bundle / "manifest.json", repr(version)):
        read_manifest(bundle)


def test_a_bundle_of_an_earlier_version_is_refused_with_the_command_that_makes_it_again() -> None:
    """The manifest is of a bundle that va-export 0.1.0 made, at commit 3dbea5f; its files were left out."""
    with refused(EARLIER / "manifest.json", 1) as caught:
        read_manifest(EARLIER)
    command = str(caught.value.fix).partition(": ")[2]
    assert shlex.split(command)[:1] == ["va-export"]
    outcome = va_export(*shlex.split(command)[1:], "--dry-run")
    assert outcome.code == 0, outcome.stderr


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "onnx/../../secret", "..\\secret"])
def test_a_name_that_leaves_the_bundle_is_refused(bundle: Path, name: str) -> None:
    (bundle.parent / "secret").write_bytes(b"12345")
    change(bundle, lambda data: data["files"].update({name: {"bytes": 5, "sha256": "0" * 64}}))
    with refused(bundle / "manifest.json", repr(name)):
        read_manifest(bundle)


def test_a_file_that_was_never_checked_is_not_used(bundle: Path) -> None:
    (bundle.parent / "evil.so").write_bytes(b"code")
    for name in ("../evil.so", "onnx/other.onnx"):
        with refused(bundle / "manifest.json", name):
            read_manifest(bundle).path(name)


@pytest.mark.parametrize("edit", [
    lambda data: data.pop("gains"),
    lambda data: data.update(files=["onnx/a.onnx"]),
    lambda data: data.update(model=None),
    lambda data: data["files"].update({"onnx/a.onnx": 5}),
    lambda data: data["files"].update({"onnx/a.onnx": {"bytes": "5", "sha256": "0"}}),
    lambda data: data["files"]["onnx/a.onnx"].pop("sha256"),
    lambda data: data.update(surplus=1),
    lambda data: data["limits"].update(max_frames=0),
    lambda data: data["components"]["vision"]["inputs"][0].update(dtype="float8"),
])  # fmt: skip
def test_a_malformed_manifest_is_refused(bundle: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    change(bundle, edit)
    with refused(bundle / "manifest.json"):
        read_manifest(bundle)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\x00"])
def test_a_manifest_that_is_no_table_is_refused(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text)
    with refused(bundle / "manifest.json"):
        read_manifest(bundle)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with refused(tmp_path / "none"):
        read_manifest(tmp_path / "none")
    with refused(tmp_path, "manifest.json"):
        read_manifest(tmp_path)
