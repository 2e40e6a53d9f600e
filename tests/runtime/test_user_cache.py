"""Where caches lie, by option, variable and system."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusals import refused

from va_export.runtime.user_cache import resolve_cache


def test_where_a_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(text: str) -> Path | None:
        return resolve_cache("--some-cache", text, "some")

    monkeypatch.setenv("VA_EXPORT_CACHE", str(tmp_path / "v"))
    assert resolve("") == tmp_path / "v" / "some"
    monkeypatch.delenv("VA_EXPORT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert resolve("") == tmp_path / "x" / "va-export" / "some"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert resolve("") == Path.home() / ".cache" / "va-export" / "some"
    assert resolve("off") is None
    assert resolve(str(tmp_path / "given")) == tmp_path / "given"
    (tmp_path / "file").write_bytes(b"")
    with refused(tmp_path / "file" / "cache", tmp_path / "file", "--some-cache"):
        resolve(str(tmp_path / "file" / "cache"))
