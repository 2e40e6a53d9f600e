"""The PEP 517 backend: scikit-build-core, told where nvcc and TensorRT's headers are.

What this machine lacks is asked for as build requirements (nvcc) or fetched (headers); a machine with a CUDA
toolkit and a TensorRT SDK downloads neither. Environment: VA_EXPORT_SKIP_PLUGINS=1 installs the Python package
alone; VA_EXPORT_CUDA_ARCHS="90" compiles for fewer GPUs; TENSORRT_ROOT, CUDACXX and CUDA_HOME say where things are.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import toolchain
from scikit_build_core import build as skbuild

Settings = dict[str, Any] | None

build_sdist = skbuild.build_sdist
get_requires_for_build_sdist = skbuild.get_requires_for_build_sdist


def _skips_plugins() -> bool:
    return os.environ.get("VA_EXPORT_SKIP_PLUGINS", "") not in ("", "0")


def _pure(settings: Settings) -> dict[str, Any]:
    return {**(settings or {}), "wheel.cmake": "false"}


def _native_requires() -> list[str]:
    requires = list(toolchain.NVCC_WHEELS) if toolchain.find_nvcc() is None else []
    if toolchain.find_tensorrt_headers() is None:
        requires.append("pip")  # fetches the headers; pip's own build environments have none
    return requires


def _native(settings: Settings, scratch: Path) -> dict[str, Any]:
    defines: dict[str, str] = {}
    nvcc = toolchain.find_nvcc()
    if nvcc is None:
        nvcc = toolchain.find_nvcc_in_wheels()
        if nvcc is None:
            raise SystemExit(
                f"No nvcc {'.'.join(map(str, toolchain.OLDEST_NVCC))} or newer was found. Install the CUDA "
                f"toolkit and set CUDA_HOME, or `pip install {' '.join(toolchain.NVCC_WHEELS)}`; "
                "VA_EXPORT_SKIP_PLUGINS=1 installs without the plugins."
            )
        # The wheels keep libraries in lib, where their nvcc looks in lib64.
        defines["cmake.define.CMAKE_CUDA_FLAGS"] = f"-L{nvcc.parents[1] / 'lib'}"
    headers = toolchain.find_tensorrt_headers() or toolchain.fetch_tensorrt_headers(scratch)
    defines["cmake.define.CMAKE_CUDA_COMPILER"] = str(nvcc)
    defines["cmake.define.TENSORRT_INCLUDE_DIR"] = str(headers)
    return {**defines, **(settings or {})}


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    if _skips_plugins():
        return skbuild.get_requires_for_build_wheel(_pure(config_settings))
    return [*skbuild.get_requires_for_build_wheel(config_settings), *_native_requires()]


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    if _skips_plugins():
        return skbuild.get_requires_for_build_editable(_pure(config_settings))
    return [*skbuild.get_requires_for_build_editable(config_settings), *_native_requires()]


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: Settings = None) -> str:
    settings = _pure(config_settings) if _skips_plugins() else config_settings
    return skbuild.prepare_metadata_for_build_wheel(metadata_directory, settings)


def prepare_metadata_for_build_editable(metadata_directory: str, config_settings: Settings = None) -> str:
    settings = _pure(config_settings) if _skips_plugins() else config_settings
    return skbuild.prepare_metadata_for_build_editable(metadata_directory, settings)


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    if _skips_plugins():
        return skbuild.build_wheel(wheel_directory, _pure(config_settings), metadata_directory)
    with tempfile.TemporaryDirectory() as scratch:
        return skbuild.build_wheel(wheel_directory, _native(config_settings, Path(scratch)), metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    if _skips_plugins():
        return skbuild.build_editable(wheel_directory, _pure(config_settings), metadata_directory)
    with tempfile.TemporaryDirectory() as scratch:
        settings = _native(config_settings, Path(scratch))
        return skbuild.build_editable(wheel_directory, settings, metadata_directory)
