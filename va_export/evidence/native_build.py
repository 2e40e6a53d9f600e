"""Builds the plugin library for one GPU, and the host that calls its plugin object."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from va_export.errors import VaExportError
from va_export.evidence.plugin_host import HOST_NAME
from va_export.native import LIBRARY_NAME


@dataclass(frozen=True)
class NativeBuild:
    """What was built."""

    library: Path
    host: Path


def cuda_arch(compute_capability: str) -> str:
    """CMake's name of a GPU's own machine code: "9.0" is 90-real, and the plugin's cmake adds what 90a needs."""
    return compute_capability.replace(".", "") + "-real"


def build_native(repository: Path, folder: Path, arch: str) -> NativeBuild:
    """Configure and build `plugins/` in `folder`; what is up to date there is left alone.

    Args:
        repository: a checkout, with `plugins/`.
        arch: as CMake names it, such as "90-real".

    Raises:
        VaExportError: no CMake, no nvcc, no TensorRT headers, or a compiler's own error (whose last lines it has).
    """
    toolchain = _toolchain(repository)
    nvcc = toolchain.find_nvcc() or toolchain.find_nvcc_in_wheels()
    if nvcc is None:
        raise VaExportError("no nvcc was found", where="PATH", fix="install the CUDA toolkit and set CUDA_HOME")
    cmake = shutil.which("cmake") or shutil.which("cmake", path=str(Path(sys.executable).parent))
    if cmake is None:
        raise VaExportError("no cmake was found", where="PATH", fix="pip install cmake ninja")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        headers = toolchain.find_tensorrt_headers() or _kept_headers(toolchain, folder)
    except SystemExit as error:  # the build's own way of saying so
        raise VaExportError(str(error), where="TENSORRT_ROOT", fix="set TENSORRT_ROOT to a TensorRT 10+ SDK") from None
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure = [cmake, "-S", str(repository / "plugins"), "-B", str(folder), *generator]
    configure += [
        f"-DVA_EXPORT_CUDA_ARCHS={arch}",
        f"-DCMAKE_CUDA_COMPILER={nvcc}",
        f"-DTENSORRT_INCLUDE_DIR={headers}",
    ]
    if "site-packages" in nvcc.parts:  # the wheels keep libraries in lib, where their nvcc looks in lib64
        configure.append(f"-DCMAKE_CUDA_FLAGS=-L{nvcc.parents[1] / 'lib'}")
    jobs = str(len(os.sched_getaffinity(0)))
    for command in (
        configure,
        [cmake, "--build", str(folder), "--parallel", jobs, "--target", "va_plugins", "va_plugin_host"],
    ):
        _run(command)
    return built(folder)


def built(folder: Path) -> NativeBuild:
    """What an earlier build left in `folder`.

    Raises:
        VaExportError: a file is not there.
    """
    build = NativeBuild(folder / LIBRARY_NAME, folder / HOST_NAME)
    for path in (build.library, build.host):
        if not path.is_file():
            raise VaExportError(f"{path.name} has not been built", where=folder, fix="run without --no-build first")
    return build


def _toolchain(repository: Path) -> Any:
    """plugins/toolchain.py, which is the build's own and not installed."""
    spec = importlib.util.spec_from_file_location("toolchain", repository / "plugins" / "toolchain.py")
    if spec is None or spec.loader is None or not Path(spec.origin or "").is_file():
        raise VaExportError("this is no checkout of va-export", where=repository, fix="run it from a git checkout")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _kept_headers(toolchain: Any, folder: Path) -> Path:
    """TensorRT's headers, fetched once a folder."""
    kept: Path = folder / "tensorrt-headers" / toolchain.HEADERS_IN_WHEEL
    if (kept / "NvInferRuntime.h").is_file():
        return kept
    fetched: Path = toolchain.fetch_tensorrt_headers(folder / "tensorrt-headers")
    return fetched


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        last = "\n".join(done.stdout.strip().splitlines()[-25:])
        raise VaExportError(f"the build failed:\n{last}", where=" ".join(command), fix="mend what the compiler names")
