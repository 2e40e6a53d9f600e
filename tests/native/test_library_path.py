"""Where the plugin library is looked for, and what a user reads where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusals import refused

import va_export.native
from va_export.errors import VaExportError
from va_export.native import LIBRARY_NAME, load_library, plugin_library


def test_variable_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = tmp_path / "other.so"
    library.touch()
    monkeypatch.setenv("VA_EXPORT_PLUGIN_LIBRARY", str(library))
    assert plugin_library() == library


def test_variable_that_names_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VA_EXPORT_PLUGIN_LIBRARY", str(tmp_path / "absent.so"))
    with refused(tmp_path / "absent.so", "VA_EXPORT_PLUGIN_LIBRARY"):
        plugin_library()


def test_library_beside_the_sources_or_in_the_installation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VA_EXPORT_PLUGIN_LIBRARY", raising=False)
    sources, built = tmp_path / "sources", tmp_path / "built"
    sources.mkdir()
    built.mkdir()
    (built / LIBRARY_NAME).touch()
    monkeypatch.setattr(va_export.native, "__path__", [str(sources), str(built)])  # as an editable install has it
    assert plugin_library() == built / LIBRARY_NAME


def test_missing_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VA_EXPORT_PLUGIN_LIBRARY", raising=False)
    monkeypatch.setattr(va_export.native, "__path__", [str(tmp_path)])
    with pytest.raises(VaExportError) as caught:
        plugin_library()
    assert "VA_EXPORT_SKIP_PLUGINS" in caught.value.what
    assert "pip install" in (caught.value.fix or "")


def test_file_that_is_no_library(tmp_path: Path) -> None:
    path = tmp_path / LIBRARY_NAME
    path.write_text("not ELF")
    with refused(path):
        load_library(path)
