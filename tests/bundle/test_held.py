"""What lies in a bundle stays in it: links, devices, odd names, archives; and one that changes while it is open."""

from __future__ import annotations

import gc
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from documents_made import manifest_document
from refusals import refused

from va_export.bundle.held import HeldFiles
from va_export.bundle.manifest import Manifest, read_manifest, verify_hashes
from va_export.bundle.write import bundle_writer
from va_export.errors import VaExportError

NAME = "onnx/a.onnx"


def write_bundle(place: Path, content: bytes = b"graph") -> Path:
    with bundle_writer(place, overwrite=True) as writer:
        writer.path(NAME).write_bytes(content)
        writer.path("config.json").write_bytes(b"{}")
        writer.seal(manifest_document())
        return writer.commit(passed=True)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "b")


def outside_file(bundle: Path) -> Path:
    """A file beside the bundle with the size that the manifest expects."""
    path = bundle.parent / "secret"
    path.write_bytes(b"12345")
    return path


def link_file(bundle: Path) -> None:
    (bundle / NAME).symlink_to(outside_file(bundle))


def link_relative(bundle: Path) -> None:
    outside_file(bundle)
    (bundle / NAME).symlink_to("../../secret")


def link_directory(bundle: Path) -> None:
    folder = bundle.parent / "elsewhere"
    folder.mkdir()
    (folder / "a.onnx").write_bytes(b"graph")
    (bundle / "onnx").rmdir()
    (bundle / "onnx").symlink_to(folder)


def link_over_a_link(bundle: Path) -> None:
    outside_file(bundle)
    (bundle / "out").symlink_to("..")
    (bundle / NAME).symlink_to("../out/secret")


def link_to_itself(bundle: Path) -> None:
    (bundle / NAME).symlink_to("a.onnx")


def link_device(bundle: Path) -> None:
    (bundle / NAME).symlink_to("/dev/zero")


def fifo(bundle: Path) -> None:
    os.mkfifo(bundle / NAME)  # to open one for reading waits for a writer, for ever


def directory(bundle: Path) -> None:
    (bundle / NAME).mkdir()


def unix_socket(bundle: Path) -> None:
    here = Path.cwd()
    os.chdir(bundle / "onnx")  # the name of a socket is short
    try:
        socket.socket(socket.AF_UNIX).bind("a.onnx")
    finally:
        os.chdir(here)


KINDS = [
    link_file, link_relative, link_directory, link_over_a_link, link_to_itself, link_device, fifo, directory,
    unix_socket,
]  # fmt: skip


@pytest.mark.parametrize("put", KINDS)
def test_what_is_no_file_of_the_bundle_is_refused(bundle: Path, put: Callable[[Path], None]) -> None:
    (bundle / NAME).unlink()
    put(bundle)
    with pytest.raises(VaExportError) as caught:
        read_manifest(bundle)
    assert caught.value.where == str(bundle / NAME)


def test_a_manifest_that_is_a_link_to_outside_is_refused(bundle: Path) -> None:
    (bundle / "manifest.json").rename(bundle.parent / "manifest.json")
    (bundle / "manifest.json").symlink_to("../manifest.json")
    with pytest.raises(VaExportError) as caught:
        read_manifest(bundle)
    assert caught.value.where == str(bundle / "manifest.json")


def test_links_within_the_bundle_and_to_it_are_fine(bundle: Path) -> None:
    (bundle / NAME).rename(bundle / "blob")
    (bundle / NAME).symlink_to("../blob")
    (bundle.parent / "current").symlink_to("b")
    manifest = read_manifest(bundle.parent / "current")
    verify_hashes(manifest)
    assert manifest.held.read(NAME) == b"graph"


def test_a_link_to_a_bundle_that_is_set_anew_leaves_an_open_one(bundle: Path) -> None:
    write_bundle(bundle.parent / "c", b"other")
    current = bundle.parent / "current"
    current.symlink_to("b")
    manifest = read_manifest(current)
    current.unlink()
    current.symlink_to("c")
    with manifest.held.in_place(NAME) as root:
        assert (root / NAME).read_bytes() == b"graph"
    assert read_manifest(current).held.read(NAME) == b"other"


@pytest.mark.parametrize("name", [
    "../secret", "/etc/passwd", "onnx/../../secret", "onnx\\a.onnx", "C:\\secret", "onnx/a\0.onnx", "onnx//b.onnx",
    "./config.json", "onnx/", "", ".", "manifest.json", "onnx/a\n.onnx", "onnx/\ud800", "onnx/\u202ea.onnx",
    "Onnx/A.onnx", "ONNX/a.onnx", "CONFIG.JSON",
])  # fmt: skip
def test_names_that_no_bundle_has_are_refused(bundle: Path, name: str) -> None:
    outside_file(bundle)
    data = json.loads((bundle / "manifest.json").read_text())
    data["files"][name] = data["files"][NAME]
    (bundle / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(VaExportError) as caught:
        read_manifest(bundle)
    assert str(caught.value.where).startswith(str(bundle / "manifest.json"))


def test_one_name_in_two_forms_of_unicode_is_refused(bundle: Path) -> None:
    data = json.loads((bundle / "manifest.json").read_text())
    for name in ("\u00e9.json", "e\u0301.json"):
        (bundle / name).write_bytes(b"{}")
        data["files"][name] = data["files"]["config.json"]
    (bundle / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(VaExportError) as caught:
        read_manifest(bundle)
    assert caught.value.where == str(bundle / "manifest.json")


def test_a_key_that_stands_twice_is_refused(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text()
    assert text.count('"files": {') == 1
    (bundle / "manifest.json").write_text(text.replace('"files": {', '"files": {}, "files": {'))
    with pytest.raises(VaExportError) as caught:
        read_manifest(bundle)
    assert caught.value.where == str(bundle / "manifest.json")


@pytest.mark.parametrize("format_", ["zip", "tar", "gztar"])
def test_archives_are_refused_by_name(bundle: Path, tmp_path: Path, format_: str) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), format_, bundle))
    with refused(archive):
        read_manifest(archive)


def test_a_file_is_no_bundle(bundle: Path) -> None:
    for place in (bundle / "config.json", bundle / "config.json" / "b", Path("b\0")):
        with pytest.raises(VaExportError) as caught:
            read_manifest(place)
        assert caught.value.where == str(place)


def rename_away(bundle: Path) -> None:
    bundle.rename(bundle.parent / "old")
    write_bundle(bundle, b"other")


def rename_over(bundle: Path) -> None:
    (bundle / "new").write_bytes(b"other")
    (bundle / "new").replace(bundle / NAME)


def remove(bundle: Path) -> None:
    shutil.rmtree(bundle)


def replace_as_an_export_does(bundle: Path) -> None:
    write_bundle(bundle, b"other")


def edit_in_place(bundle: Path) -> None:
    (bundle / NAME).write_bytes(b"other")


def edit_through_a_hard_link(bundle: Path) -> None:
    os.link(bundle / NAME, bundle.parent / "second")
    (bundle.parent / "second").write_bytes(b"other")


def truncate(bundle: Path) -> None:
    os.truncate(bundle / NAME, 2)


def opened(bundle: Path) -> Manifest:
    # A second ago: the clock of a file system may not move between two writes in a test.
    status = (bundle / NAME).stat()
    os.utime(bundle / NAME, ns=(status.st_atime_ns, status.st_mtime_ns - 1_000_000_000))
    return read_manifest(bundle)


@pytest.mark.parametrize("change", [rename_away, rename_over, remove, replace_as_an_export_does])
def test_what_is_read_later_is_what_was_there(bundle: Path, change: Callable[[Path], None]) -> None:
    manifest = opened(bundle)
    change(bundle)
    assert manifest.held.read(NAME) == manifest.held.path(NAME).read_bytes() == b"graph"
    verify_hashes(manifest)


@pytest.mark.parametrize("change", [edit_in_place, edit_through_a_hard_link, truncate])
def test_an_edit_in_place_is_found(bundle: Path, change: Callable[[Path], None]) -> None:
    manifest = opened(bundle)
    with manifest.held.in_place(NAME, stay_open=True):
        pass
    change(bundle)
    for read in (manifest.held.read, manifest.held.sha256, lambda _: manifest.held.check_open()):
        with pytest.raises(VaExportError) as caught:
            read(NAME)
        assert caught.value.where == str(bundle / NAME)


@pytest.mark.parametrize("change", [rename_over, remove, replace_as_an_export_does, edit_in_place])
def test_a_name_whose_file_was_exchanged_is_refused(bundle: Path, change: Callable[[Path], None]) -> None:
    manifest = opened(bundle)
    change(bundle)
    with pytest.raises(VaExportError) as caught, manifest.held.in_place(NAME):
        pytest.fail("nothing may be opened by this name")
    assert caught.value.where == str(bundle / NAME)


@pytest.mark.parametrize("change", [rename_away, rename_over, remove, edit_in_place])
def test_an_exchange_while_it_is_opened_by_name_is_found(bundle: Path, change: Callable[[Path], None]) -> None:
    manifest = opened(bundle)
    with pytest.raises(VaExportError), manifest.held.in_place(NAME):
        change(bundle)


def test_a_hard_link_is_a_file_like_any(bundle: Path) -> None:
    os.link(bundle / NAME, bundle.parent / "second")
    manifest = opened(bundle)
    (bundle.parent / "second").unlink()
    assert manifest.held.read(NAME) == b"graph"


def test_a_relative_place_is_looked_up_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle.parent)
    manifest = read_manifest(Path("b"))
    monkeypatch.chdir("/")
    assert manifest.held.text("config.json") == "{}"
    with manifest.held.in_place(NAME) as root:
        assert (root / NAME).read_bytes() == b"graph"


def test_descriptors_close_with_the_last_reference(bundle: Path) -> None:
    def n_open() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    gc.collect()
    before = n_open()
    held = HeldFiles(bundle)
    held.hold(NAME)
    assert n_open() == before + 2
    del held
    assert n_open() == before


def test_errors_show_the_files_own_name(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    with manifest.held.in_place(NAME) as root:
        assert VaExportError("", where=root / NAME).where == str(bundle / NAME)
    assert VaExportError("", where=manifest.held.path(NAME)).where == str(bundle / NAME)
