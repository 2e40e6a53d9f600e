"""The built libva_plugins.so: it loads anywhere, holds code for every GPU that it names, and keeps its contract."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from va_export._version import __version__
from va_export.native import plugin_contract
from va_export.ops import anchored_attention, subspace_score

PLUGINS = Path(__file__).parents[2] / "plugins"
DEVICE_FUNCTIONS = (
    *("identify", "use", "allocate", "copy", "create_stream", "synchronize"),
    *("begin_capture", "end_capture", "free_graph", "replay"),
)
FATBIN_MAGIC = 0xBA55ED50
FATBIN_PTX, FATBIN_SASS = 1, 2


def gpu_code(library: Path) -> list[tuple[int, int]]:
    """(kind, architecture) of every entry in the library's fat binaries, as fatbinary (CUDA 11 to 13) writes them."""
    data = library.read_bytes()
    entries = []
    for match in re.finditer(re.escape(struct.pack("<I", FATBIN_MAGIC)), data):
        _, _, header_size, size = struct.unpack_from("<IHHQ", data, match.start())
        position, end = match.start() + header_size, match.start() + header_size + size
        while position < end:
            kind, _, entry_header, payload = struct.unpack_from("<HHIQ", data, position)
            (architecture,) = struct.unpack_from("<I", data, position + 28)
            entries.append((kind, architecture))
            position += entry_header + payload
    return entries


def run_binutils(program: str, *arguments: str | Path) -> str:
    if shutil.which(program) is None:
        pytest.skip(f"{program} (binutils) is not on this machine")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout


def test_holds_code_for_every_gpu_it_names(installed_library: Path) -> None:
    named = plugin_contract()["cuda_archs"]
    expected = set()
    for name in named:
        architecture = int(re.match(r"\d+", name)[0])  # type: ignore[index]
        if not name.endswith("-virtual"):
            expected.add((FATBIN_SASS, architecture))
        if not name.endswith("-real"):
            expected.add((FATBIN_PTX, architecture))
    assert set(gpu_code(installed_library)) == expected


def test_loads_without_a_driver_and_without_torch(installed_library: Path) -> None:
    program = (
        "import os, sys; os.environ['CUDA_VISIBLE_DEVICES'] = ''\n"
        "from va_export.native import plugin_contract\n"
        "print(plugin_contract()['library_version'], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == f"{__version__} False\n"


def test_needs_no_tensorrt_and_no_cuda_library(installed_library: Path) -> None:
    text = run_binutils("readelf", "-d", installed_library)
    needed = re.findall(r"NEEDED.*\[(.*)\]", text)
    assert needed
    assert not [name for name in needed if re.search(r"cuda|nvinfer|tensorrt|nvrtc", name)]


def test_exports_its_interface_and_nothing_else(installed_library: Path) -> None:
    text = run_binutils("nm", "-D", "--defined-only", installed_library)
    assert {line.split()[-1] for line in text.splitlines()} == {
        "getCreators",
        "setLoggerFinder",
        "va_anchored_attention_launch",
        "va_anchored_attention_workspace_bytes",
        *(f"va_device_{name}" for name in DEVICE_FUNCTIONS),
        "va_greedy_step_launch",
        "va_kernels_name",
        "va_kernels_select",
        "va_kernels_selected",
        "va_plugins_contract",
        "va_plugins_error_string",
        "va_subspace_score_launch",
        "va_subspace_score_workspace_bytes",
    }


@pytest.mark.parametrize("op", [anchored_attention, subspace_score], ids=lambda op: op.OP_TYPE)
def test_tensors_have_the_types_and_dimensions_of_the_schema(installed_library: Path, op: ModuleType) -> None:
    """Names, fields and domains are held against each other in tests/ops."""
    schema = op.schema()
    (contract,) = [entry for entry in plugin_contract()["ops"] if entry["name"] == schema.name]
    onnx_types = {"T": "T", "float32": "tensor(float)", "int64": "tensor(int64)"}
    for ours, theirs in ((contract["inputs"], schema.inputs), (contract["outputs"], schema.outputs)):
        for tensor, parameter in zip(ours, theirs, strict=True):
            assert (tensor["name"], onnx_types[tensor["type"]]) == (parameter.name, parameter.type_str)
            dims = ", ".join(tensor["dims"]) + ("," if len(tensor["dims"]) == 1 else "")
            assert f"({dims})" in parameter.description
