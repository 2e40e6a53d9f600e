"""Bundles that are exported once a run and never changed (copy one to damage it), the golden run, the files' order."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from built_once import built_once
from command_line import TINY, va_export
from deep_checkpoint import write_deep_checkpoint

if TYPE_CHECKING:
    import numpy as np

TESTS = Path(__file__).parent
PLUGINS = TESTS.parent / "plugins"
GOLDEN = TESTS / "data" / "golden" / "internvl2_tiny"

# More than half of the time of all tests, from 200 seconds down to 20; scripts/test.sh gives them out in this order.
LONGEST_FILES = (
    "tests/export/test_real_width.py",
    "tests/cli/test_terminal.py",
    "tests/cli/test_export_interrupted.py",
    "tests/plugins/test_kernel_code.py",
    "tests/test_pipeline.py",
    "tests/plugins/test_subspace_score_kernel.py",
    "tests/graph/test_shard_graphs.py",
    "tests/plugins/test_score_products.py",
    "tests/models/internvl2/test_internvl2_decoders.py",
    "tests/runtime/test_batch.py",
    "tests/graph/test_trace.py",
    "tests/plugins/test_kernel_bounds.py",
    "tests/export/test_sharded_bundle.py",
    "tests/anchor/test_self_expression.py",
    "tests/plugins/test_plugin_on_host.py",
    "tests/cli/test_export_refusals.py",
    "tests/export/test_overflow.py",
    "tests/anchor/test_warm_start.py",
    "tests/scripts/test_gpu_end_to_end.py",
    "tests/checkpoint/test_hub.py",
    "tests/fuzz/test_fuzz.py",
)


def pytest_configure() -> None:
    """Set before NumPy's and PyTorch's first import (which is why there is none above): on a busy machine, threads that
    wait for each other make the many small matrix products of the solver ten times slower."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest files first, so that no core is left alone with one at the end; the order of a file's tests stays."""
    places = {name: place for place, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: places.get(item.nodeid.split("::")[0], len(places)))


@pytest.fixture(scope="session", autouse=True)
def own_engine_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tests' own engine cache, empty at first: the user's is neither read nor filled. One, as the bundles are."""
    directory = built_once(tmp_path_factory, "engine-cache", lambda _: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VA_EXPORT_CACHE", str(directory))
        yield directory


def _exported(factory: pytest.TempPathFactory, name: str, *arguments: object) -> Path:
    def export(directory: Path) -> None:
        outcome = va_export("--output", directory / "bundle", *arguments)
        assert outcome.code == 0, outcome.stderr

    return built_once(factory, name, export) / "bundle"


@pytest.fixture(scope="session")
def can_build_engines() -> bool:
    """Whether TensorRT-RTX and the plugin library are here."""
    from va_export.errors import VaExportError
    from va_export.native import plugin_library
    from va_export.tensorrt.api import available_flavors

    try:
        plugin_library()
    except VaExportError:
        return False
    return "tensorrt-rtx" in available_flavors()


@pytest.fixture(scope="session")
def needs_engines(can_build_engines: bool) -> None:
    """Skips where there is no TensorRT-RTX or no plugin library."""
    if not can_build_engines:
        pytest.skip("tensorrt_rtx or the plugin library is not installed")


@pytest.fixture(scope="session")
def clip() -> Path:
    """A real video of 250 frames."""
    from va_export.runtime.video import sample_clip

    return sample_clip("bikes")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, can_build_engines: bool) -> Path:
    """internvl2-tiny in float16, parity and latency included; with TensorRT-RTX engines where they can be built."""
    engines = [] if can_build_engines else ["--onnx-only"]
    return _exported(tmp_path_factory, "tiny", *TINY, "--fp16", "--latency-iterations", 2, *engines)


@pytest.fixture(scope="session")
def deep_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """internvl2-tiny with four decoder layers, no two alike."""
    return built_once(tmp_path_factory, "deep-checkpoint", write_deep_checkpoint)


@pytest.fixture(scope="session")
def sharded_bundle(tmp_path_factory: pytest.TempPathFactory, deep_checkpoint: Path, can_build_engines: bool) -> Path:
    """The four layers in two shards in float16, as `tiny_bundle` otherwise."""
    engines = ["--target", "sm80,sm86,sm89,sm120"] if can_build_engines else ["--onnx-only"]
    options = ("--decoder-shards", 2, "--fp16", "--latency-iterations", 2, "--max-kv-cache-capacity", 1024)
    limits = ("--max-input-len", 1024, "--subspaces", 8)
    return _exported(tmp_path_factory, "sharded", "--model", deep_checkpoint, *options, *limits, *engines)


@pytest.fixture(scope="session")
def golden() -> Mapping[str, np.ndarray[Any, Any]]:
    """The run of the official implementation."""
    import numpy as np

    with np.load(GOLDEN / "golden.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="session")
def golden_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """precision → the golden checkpoint's bundle, ONNX only."""

    def bundle(precision: str) -> Path:
        options = ("--subspaces", 8, "--precision", precision, "--onnx-only", "--latency-iterations", 0)
        return _exported(tmp_path_factory, f"golden-{precision}", "--model", GOLDEN, *options)

    return bundle


@pytest.fixture
def copied_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, to damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def golden_checkpoint() -> Path:
    """The golden checkpoint's directory: no tokenizer."""
    return GOLDEN


@pytest.fixture
def checkpoint_copy(golden_checkpoint: Path, tmp_path: Path) -> Path:
    """A writable copy of the golden checkpoint, to damage."""
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    for name in ("config.json", "model.safetensors"):
        (directory / name).write_bytes((golden_checkpoint / name).read_bytes())
    return directory


@pytest.fixture(scope="session")
def solver_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """libva_solver.so: the installed one, else built once, without CUDA."""
    from va_export.native.solver import LIBRARY_NAME, solver_library

    installed = solver_library()
    if installed is not None:
        return installed
    if not shutil.which("cmake") or not (shutil.which("c++") or shutil.which("g++")):
        pytest.skip(f"no {LIBRARY_NAME} is installed, and no cmake and C++ compiler to build it")

    def build(directory: Path) -> None:
        configure = ["cmake", "-S", str(PLUGINS), "-B", str(directory), "-DVA_EXPORT_CUDA=OFF"]
        for command in (configure, ["cmake", "--build", str(directory)]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr

    return built_once(tmp_path_factory, "solver", build) / LIBRARY_NAME
