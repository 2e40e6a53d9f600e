"""What the build asks for: this machine's compiler and headers first, wheels for what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import toolchain


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No variable names a compiler or SDK, and PATH is empty; the directory is tmp_path."""
    for name in ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "TENSORRT_ROOT", "VA_EXPORT_SKIP_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "")
    return tmp_path


def write_nvcc(path: Path, release: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.0'\n")
    path.chmod(0o755)
    return path


def test_cuda_home_is_believed(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc = write_nvcc(bare_machine / "cuda" / "bin" / "nvcc", "12.8")
    monkeypatch.setenv("CUDA_HOME", str(bare_machine / "cuda"))
    assert toolchain.find_nvcc() == nvcc
    assert toolchain.nvcc_version(nvcc) == (12, 8)


def test_an_nvcc_that_is_too_old_is_passed_over(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = write_nvcc(bare_machine / "old" / "nvcc", "11.8")
    new = write_nvcc(bare_machine / "new" / "nvcc", "12.9")
    monkeypatch.setenv("CUDACXX", str(old))
    monkeypatch.setenv("PATH", str(new.parent))
    assert toolchain.find_nvcc() == new


def test_headers_of_an_old_tensorrt_are_passed_over(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = bare_machine / "include" / "NvInferRuntime.h"
    header.parent.mkdir()
    monkeypatch.setenv("TENSORRT_ROOT", str(bare_machine))
    header.write_text("class IPluginV2;")
    assert toolchain.find_tensorrt_headers() != header.parent
    header.write_text("class IPluginCreatorV3One;")
    assert toolchain.find_tensorrt_headers() == header.parent


def test_a_header_wheel_that_was_changed_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "kernel_lens-2.0.1-py3-none-any.whl").write_bytes(b"changed")
    monkeypatch.setattr(toolchain.subprocess, "run", lambda *args, **options: None)  # pip found it cached, say
    with pytest.raises(SystemExit, match="expected 07cc714e"):
        toolchain.fetch_tensorrt_headers(tmp_path)


@pytest.mark.parametrize("has_all", [True, False])
def test_wheels_are_required_only_where_something_is_missing(monkeypatch: pytest.MonkeyPatch, has_all: bool) -> None:
    pytest.importorskip("scikit_build_core")
    import build_backend

    found = Path("/somewhere") if has_all else None
    monkeypatch.delenv("VA_EXPORT_SKIP_PLUGINS", raising=False)
    monkeypatch.setattr(toolchain, "find_nvcc", lambda: found)
    monkeypatch.setattr(toolchain, "find_tensorrt_headers", lambda: found)
    monkeypatch.chdir(Path(__file__).parents[2])
    requires = build_backend.get_requires_for_build_wheel()
    assert ("pip" in requires) is not has_all
    assert all((wheel in requires) is not has_all for wheel in toolchain.NVCC_WHEELS)


def test_skipping_the_plugins_requires_no_compiler(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("scikit_build_core")
    import build_backend

    monkeypatch.setenv("VA_EXPORT_SKIP_PLUGINS", "1")
    monkeypatch.chdir(Path(__file__).parents[2])
    assert not [r for r in build_backend.get_requires_for_build_wheel() if r.startswith(("nvidia", "pip", "cmake"))]
