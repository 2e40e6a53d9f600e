"""The alias is judged by the system's own loader."""

from __future__ import annotations

import ctypes
import ctypes.util
import re
import sys
import tempfile
from pathlib import Path

import pytest

from va_export.tensorrt.alias_library import alias_library_bytes, alias_loaded_library

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the alias is an ELF file")


def _loaded_path(name: str) -> Path:
    ctypes.CDLL(ctypes.util.find_library(name))
    maps = Path("/proc/self/maps").read_text()
    match = re.search(rf"(/\S*/lib{name}[-.]\S*)", maps)
    assert match is not None
    return Path(match.group(1))


def test_dlopen_finds_the_loaded_library_by_its_new_name() -> None:
    alias = "libva_alias_test.so"
    with pytest.raises(OSError, match="cannot open shared object file"):
        ctypes.CDLL(alias)
    alias_loaded_library(_loaded_path("m"), alias)
    library = ctypes.CDLL(alias)
    library.cos.restype, library.cos.argtypes = ctypes.c_double, [ctypes.c_double]
    assert library.cos(0.0) == 1.0


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    alias_loaded_library(_loaded_path("m"), "libva_alias_test_2.so")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_dependency_is_an_error() -> None:
    with pytest.raises(OSError, match="libno_such_thing"):
        alias_loaded_library(Path("/nowhere/libno_such_thing.so.1"), "libva_alias_test_3.so")


def test_the_file_names_its_machine() -> None:
    header = alias_library_bytes("liba.so", "/b/libb.so.1", machine="aarch64")
    assert header[:4] == b"\x7fELF"
    assert int.from_bytes(header[18:20], "little") == 183  # EM_AARCH64
    with pytest.raises(OSError, match="riscv64"):
        alias_library_bytes("liba.so", "/b/libb.so.1", machine="riscv64")
