"""Builds the kernel for the CPU, once a session, and finds what only some machines have."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import pytest
from built_once import built_once
from tensor_core_case import TensorCoreKernel

from va_export.errors import VaExportError
from va_export.evidence.plugin_host import HOST_NAME, PluginHost
from va_export.native import plugin_library, subspace_score_params
from va_export.native.anchored_attention_params import bind

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "plugins"))  # the build's own modules, which are not installed
import toolchain  # noqa: E402

SIMT = Path(__file__).parent / "simt"
KERNEL_VARIABLE = "VA_EXPORT_ATTENTION_KERNEL"


@pytest.fixture(params=["simple", "tensor_core"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which kernel the launcher takes where both serve; the test runs with either."""
    name: str = request.param
    monkeypatch.setenv(KERNEL_VARIABLE, name)
    return name


@pytest.fixture(scope="session")
def cxx() -> str:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler on this machine")
    return compiler


@pytest.fixture(scope="session")
def host_flags() -> list[str]:
    """Flags that make the kernel's CUDA includes find the emulation."""
    return [
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unknown-pragmas",
        "-fvisibility=hidden",  # several of these libraries in one process: each keeps its own emulation's state
        f"-I{SIMT}",
        f"-I{REPOSITORY / 'plugins'}",
    ]


class Compile(Protocol):
    """What the session's compiler makes of sources: see `compile_once`."""

    def __call__(self, output: str, sources: Iterable[Path], *flags: str) -> Path: ...


@pytest.fixture(scope="session")
def compile_once(tmp_path_factory: pytest.TempPathFactory, cxx: str, host_flags: list[str]) -> Compile:
    """Compiles for the CPU, once for all workers, and says where the output of that name lies."""

    def compiled(output: str, sources: Iterable[Path], *flags: str) -> Path:
        def run(directory: Path) -> None:
            command = [cxx, *host_flags, *flags, "-fPIC", *map(str, sources), "-o", str(directory / output)]
            subprocess.run(command, check=True)

        return built_once(tmp_path_factory, output, run) / output

    return compiled


@pytest.fixture(scope="session")
def attention_object(compile_once: Compile) -> Path:
    """The AnchoredAttention kernels and launcher: most of what there is to compile, and part of two libraries."""
    return compile_once("anchored_attention_host.o", [SIMT / "anchored_attention_host.cpp"], "-O2", "-c")


@pytest.fixture(scope="session")
def host_library(compile_once: Compile, attention_object: Path) -> ctypes.CDLL:
    """The AnchoredAttention kernel and launcher, compiled for the CPU."""
    path = compile_once("anchored_attention_host.so", [attention_object], "-shared")
    library = bind(ctypes.CDLL(str(path)))
    library.simt_wgmma_products.restype = ctypes.c_int64
    return library


@pytest.fixture
def tensor_cores(host_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[ctypes.CDLL]:
    """The kernels on the CPU, those for tensor cores asked for; the emulated GPU is set back afterwards."""
    monkeypatch.setenv(KERNEL_VARIABLE, "tensor_core")
    yield host_library
    host_library.simt_set_gpu(80, 4, 1 << 20)
    host_library.simt_set_tensor_maps(1)


@pytest.fixture
def mma(tensor_cores: ctypes.CDLL) -> TensorCoreKernel:
    kernel = TensorCoreKernel(tensor_cores, architecture=80, tile_keys=64)
    kernel.set_gpu(sm_count=4)
    return kernel


@pytest.fixture
def hopper(tensor_cores: ctypes.CDLL) -> TensorCoreKernel:
    """On two multiprocessors, so that blocks have several work tiles."""
    kernel = TensorCoreKernel(tensor_cores, architecture=90, tile_keys=128)
    kernel.set_gpu(sm_count=2)
    return kernel


@pytest.fixture(scope="session")
def score_object(compile_once: Compile) -> Path:
    """The SubspaceScore kernels and launcher, part of two libraries."""
    return compile_once("subspace_score_host.o", [SIMT / "subspace_score_host.cpp"], "-O2", "-c")


@pytest.fixture(scope="session")
def score_library(compile_once: Compile, score_object: Path) -> ctypes.CDLL:
    """The SubspaceScore kernels and launcher, compiled for the CPU."""
    path = compile_once("subspace_score_host.so", [score_object], "-shared")
    return subspace_score_params.bind(ctypes.CDLL(str(path)))


@pytest.fixture(scope="session")
def score_plugin_driver(compile_once: Compile, score_object: Path, plugin_flags: list[str]) -> ctypes.CDLL:
    """The TensorRT plugin around the CPU build of the SubspaceScore kernels; simt/score_plugin_driver.cpp."""
    sources = [score_object, SIMT / "score_plugin_driver.cpp", *plugin_sources("subspace_score")]
    library = ctypes.CDLL(str(compile_once("score_plugin_driver.so", sources, *plugin_flags)))
    library.score_plugin_log.restype = ctypes.c_char_p
    return library


@pytest.fixture(scope="session")
def fake_device(compile_once: Compile, host_library: ctypes.CDLL, score_library: ctypes.CDLL) -> Path:
    """A plugin library for an emulated GPU, with faults on demand: simt/fake_device_host.cpp."""
    paths = (f'-DATTENTION_LIBRARY="{host_library._name}"', f'-DSCORE_LIBRARY="{score_library._name}"')
    return compile_once("fake_device_host.so", [SIMT / "fake_device_host.cpp"], *paths, "-O1", "-shared", "-ldl")


@pytest.fixture(scope="session")
def geometry_library(compile_once: Compile) -> ctypes.CDLL:
    """The kernels' index arithmetic; functions of simt/geometry_host.cpp."""
    path = compile_once("geometry_host.so", [SIMT / "geometry_host.cpp"], "-O1", "-shared")
    return ctypes.CDLL(str(path))


@pytest.fixture(scope="session")
def tensorrt_headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of NvInferRuntime.h, found or fetched as the build does it."""
    try:
        return toolchain.find_tensorrt_headers() or toolchain.fetch_tensorrt_headers(tmp_path_factory.mktemp("headers"))
    except SystemExit as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def nvcc() -> Path:
    compiler = toolchain.find_nvcc()
    if compiler is None:
        pytest.skip("no nvcc on this machine")
    return compiler


@pytest.fixture(scope="session")
def disassembler() -> Path:
    """cuobjdump, with nvdisasm beside it: a CUDA toolkit's, or that of the wheels which the extra `test` installs."""
    spec = importlib.util.find_spec("nvidia")
    wheels = [Path(root, "cu13", "bin") for root in ((spec and spec.submodule_search_locations) or [])]
    compiler = toolchain.find_nvcc()
    for directory in (*wheels, *([compiler.parent] if compiler else []), Path("/usr/local/cuda/bin")):
        if (directory / "cuobjdump").is_file() and (directory / "nvdisasm").is_file():
            return directory / "cuobjdump"
    pytest.skip("no cuobjdump and nvdisasm on this machine (wheels of theirs come with the extra `test`)")


@pytest.fixture(scope="session")
def plugin_flags(tensorrt_headers: Path) -> list[str]:
    return ["-isystem", str(tensorrt_headers), "-O2", "-shared"]


def plugin_sources(op: str) -> list[Path]:
    """What TensorRT sees of an op, and what all ops share of it."""
    plugins = REPOSITORY / "plugins"
    return [*(plugins / op).glob("*.cpp"), *(plugins / "common").glob("*.cpp")]


@pytest.fixture(scope="session")
def plugin_host_path(compile_once: Compile, plugin_flags: list[str]) -> Path:
    """plugins/host, which calls a plugin library as TensorRT does."""
    return compile_once(HOST_NAME, [REPOSITORY / "plugins" / "host" / "plugin_host.cpp"], *plugin_flags)


@pytest.fixture(scope="session")
def plugin_host(
    compile_once: Compile, plugin_flags: list[str], plugin_host_path: Path, attention_object: Path
) -> PluginHost:
    """The TensorRT plugin with its kernel compiled for the CPU, called as TensorRT calls it."""
    sources = [attention_object, SIMT / "plugin_library_host.cpp", *plugin_sources("anchored_attention")]
    return PluginHost(plugin_host_path, compile_once("plugin_library_host.so", sources, *plugin_flags))


@pytest.fixture(scope="session")
def installed_library() -> Path:
    try:
        return plugin_library()
    except VaExportError as error:
        pytest.skip(f"no plugin library: {error.what}")
