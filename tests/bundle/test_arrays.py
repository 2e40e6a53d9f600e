"""Arrays of strangers: no pickles, no archive that unpacks to more than it may."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from va_export.bundle.arrays import read_arrays
from va_export.errors import VaExportError

ARRAYS = {"frames": np.arange(24, dtype=np.uint8).reshape(2, 3, 4), "score": np.float32([[0.5]]), "n": np.int64(3)}


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def archive_of(path: Path, *members: tuple[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reads_what_numpy_writes(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "a.npz", **ARRAYS)
    read = read_arrays(tmp_path / "a.npz", most_bytes=24 + 4 + 8)
    assert set(read) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype and read[name].shape == array.shape


class Evil:
    """Makes a directory when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "a.npz"
    objects = np.empty(1, object)
    objects[0] = Evil(mark)
    archive_of(path, ("frames.npy", npy(objects)))
    with pytest.raises(VaExportError):
        read_arrays(path)
    path.write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(VaExportError):
        read_arrays(path)
    assert not mark.exists()


def test_an_archive_that_unpacks_to_too_much_is_refused_unopened(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    archive_of(path, ("frames.npy", npy(np.zeros(100_000_000, np.uint8))))
    assert path.stat().st_size < 200_000
    with pytest.raises(VaExportError) as caught:
        read_arrays(path, most_bytes=50_000_000)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("shape", [(1 << 40,), (1 << 31, 1 << 31), (), (2, 2)])
def test_a_header_that_announces_another_size_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "a.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    archive_of(path, ("frames.npy", header.getvalue() + bytes(12)))
    with pytest.raises(VaExportError):
        read_arrays(path, most_bytes=1 << 20)


@pytest.mark.parametrize(
    "name", ["../frames.npy", "/etc/frames.npy", "frames.npy\\x", "frames", "frames.pkl", "a/b.npy"]
)
def test_members_with_odd_names_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.npz"
    archive_of(path, (name, npy(np.zeros(3))))
    with pytest.raises(VaExportError):
        read_arrays(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    archive_of(path, ("frames.npy", npy(np.zeros(3))), ("frames.npy", npy(np.ones(3))))
    with pytest.raises(VaExportError):
        read_arrays(path)


def test_another_compression_than_numpys_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("frames.npy", npy(np.zeros(3)))
    with pytest.raises(VaExportError):
        read_arrays(path)


@pytest.mark.parametrize("header", [b"{'descr': '<f4', 'shape': (3", b"{'descr': '<f99L', 'shape': (3,)}", b"(((("])
def test_a_header_that_is_no_python(tmp_path: Path, header: bytes) -> None:
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    archive_of(tmp_path / "a.npz", ("frames.npy", content))
    with pytest.raises(VaExportError):
        read_arrays(tmp_path / "a.npz")
