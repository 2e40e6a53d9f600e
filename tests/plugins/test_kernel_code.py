"""What nvcc made of the kernels: tensor-core instructions, and no register spilled, for every architecture."""

from __future__ import annotations

import functools
import itertools
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from va_export.native import plugin_contract

PLUGINS = Path(__file__).parents[2] / "plugins"
ARCHITECTURES = ["80", "86", "87", "89", "90", "120"]
TYPES = ("6__half", "13__nv_bfloat16")  # as mangled names have them
HEAD_DIMS = (64, 80, 96, 128)
LOCAL_MEMORY = re.compile(r"\b(LDL|STL)\b")  # where registers are spilled to

# Shared memory that one block may use, in KB: CUDA C++ Programming Guide, "Technical Specifications per Compute
# Capability".
SHARED_KB = {"80": 163, "86": 99, "87": 163, "89": 99, "90": 227, "120": 99}


def compile_kernel(nvcc: Path, source: str, architecture: str, output: Path) -> str:
    """Compiles to machine code, without the host's part; what ptxas says."""
    code = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    flags = ["-O3", "-std=c++17", "-DNDEBUG", "-Xptxas=-v", f"-I{PLUGINS}", code]
    done = subprocess.run([nvcc, *flags, "-cubin", PLUGINS / source, "-o", output], capture_output=True, text=True)
    if "nsupported gpu architecture" in done.stderr:
        pytest.skip(f"{nvcc} does not know sm_{architecture}")
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("source", ["mma/float16.cu", "hopper/float16.cu"])
def test_ptxas_spills_nothing_and_warns_of_nothing(tmp_path: Path, nvcc: Path, source: str) -> None:
    """The source as it is, on the architecture with the most registers in use; the library below has them all."""
    architecture = "90a" if source.startswith("hopper") else "80"
    text = compile_kernel(nvcc, f"anchored_attention/{source}", architecture, tmp_path / "kernel.cubin")
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", text)
    assert set(spills) == {("0", "0")}
    # Such as C7510, "wgmma.mma_async instructions are serialized", and C7508, "setmaxnreg ignored".
    assert not re.search(r"warning|advisory|Potential Performance Loss", text), text


# Of a phase of the solver, in bytes: around calls, which LOG.md keeps as open. The inner products hold none of it, as
# the machine code shows below.
SAVED_AROUND_CALLS = 64


@pytest.mark.parametrize("architecture", ["80", "90"])
def test_score_kernels_spill_no_register(tmp_path: Path, nvcc: Path, architecture: str) -> None:
    """Every phase is a function of its own with its sums in registers; the kernels' frames hold addresses."""
    text = compile_kernel(nvcc, "subspace_score/subspace_score.cu", architecture, tmp_path / "kernel.cubin")
    usage = re.findall(
        r"Function properties for (\S+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
        text,
    )
    assert any("solve_kernel" in name for name, *_ in usage)
    solving = {"solve", "advance", "update"}
    for name, frame, stored, loaded in usage:
        is_phase = any(part in name for part in solving) and "_kernel" not in name
        assert max(int(stored), int(loaded)) <= (SAVED_AROUND_CALLS if is_phase else 0), name
        assert frame == "0" or not (is_phase or "multiply" in name), name


MachineCode = Callable[[str, str], dict[str, str]]


@pytest.fixture(scope="module")
def machine_code(installed_library: Path, disassembler: Path, tmp_path_factory: pytest.TempPathFactory) -> MachineCode:
    """The instructions of the installed library's kernels for one architecture, by a part of the kernels' name."""
    environment = {**os.environ, "PATH": f"{disassembler.parent}:{os.environ['PATH']}"}  # it runs nvdisasm

    def run(*arguments: str | Path, **options: Any) -> str:
        command = [disassembler, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment, **options).stdout

    @functools.cache
    def objects(architecture: str) -> list[Path]:
        folder = tmp_path_factory.mktemp(architecture)
        run("-xelf", "all", "-arch", f"sm_{architecture}", installed_library, cwd=folder)
        return sorted(folder.iterdir())

    @functools.cache
    def disassembled(cubin: Path) -> dict[str, str]:
        return dict(part.split("\n", 1) for part in run("-sass", cubin).split("Function : ")[1:])

    def kernels(architecture: str, name: str) -> dict[str, str]:
        having = [cubin for cubin in objects(architecture) if name.encode() in cubin.read_bytes()]
        return {kernel: code for cubin in having for kernel, code in disassembled(cubin).items() if name in kernel}

    def read(architecture: str, name: str) -> dict[str, str]:
        if not any(re.fullmatch(f"{architecture}(-real)?", known) for known in plugin_contract()["cuda_archs"]):
            pytest.skip(f"the installed library was built without code for sm_{architecture}")
        found = kernels(architecture, name)
        assert found, f"the library has no {name} for sm_{architecture}"
        return found

    return read


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attention_spills_no_register(machine_code: MachineCode, architecture: str) -> None:
    kernels = machine_code(architecture, "attention_kernel") | machine_code(architecture, "combine_kernel")
    for name, code in kernels.items():
        assert not LOCAL_MEMORY.search(code), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_mma_kernels_take_tensor_core_instructions(machine_code: MachineCode, architecture: str) -> None:
    """Prefill and decode of every width; the prefill tiles of other architectures are empty kernels."""
    found = set()
    for name, code in machine_code(architecture, "mma_attention_kernel").items():
        element, head_dim, key_warps = re.findall(r"MmaTileI(\w+?)Li(\d+)ELi\dELi\dELi(\d)E", name)[0]
        if "HMMA.16816" not in code:
            assert not re.search("LDSM|LDGSTS|MUFU", code), f"{name} works without tensor cores"
            continue
        assert "LDSM" in code, name  # ldmatrix
        assert "LDGSTS" in code, name  # cp.async
        found.add((element, int(head_dim), key_warps == "4"))
    assert found == set(itertools.product(TYPES, HEAD_DIMS, (False, True)))


@pytest.mark.parametrize("architecture", ["80", "90"])  # where they are taken without being asked for
def test_machine_code_of_the_solver_multiplies_on_tensor_cores(machine_code: MachineCode, architecture: str) -> None:
    """On TF32 numbers, and with nothing between two products that goes to local memory."""
    kernels = machine_code(architecture, "solve_kernel")
    assert any("Tensor" in name for name in kernels)
    for name, code in kernels.items():
        instructions = re.findall(r"/\*[0-9a-f]{4,5}\*/\s+([^;]*);", code)
        products = [i for i, text in enumerate(instructions) if "HMMA" in text]
        assert bool(products) == ("Tensor" in name), name
        assert all("HMMA.1688.F32.TF32" in instructions[i] for i in products), name
        for i, j in itertools.pairwise(products):
            between = instructions[i:j] if j - i < 100 else []
            assert not [text for text in between if LOCAL_MEMORY.search(text)], name


def test_hopper_kernel_keeps_its_products_under_way(machine_code: MachineCode) -> None:
    """Both products by wgmma, tiles by TMA, registers moved to the consumers; serialised, each product had its wait."""
    kernels = machine_code("90a", "hopper_attention_kernel")
    assert not [name for name, code in kernels.items() if LOCAL_MEMORY.search(code)]
    found = {re.findall(r"HopperTileI(\w+?)Li(\d+)E", name)[0] for name in kernels}
    assert found == {(element, str(head_dim)) for element in TYPES for head_dim in HEAD_DIMS}
    for name, code in kernels.items():
        for instruction in (r"HGMMA\.64x128x16\.F32.* gdesc", r"HGMMA.*tnspB", r"UTMALDG\.4D", "USETMAXREG"):
            assert re.search(instruction, code), f"{name}: {instruction}"
        steps = re.findall(r"HGMMA|WARPGROUP\.DEPBAR", code)
        unwaited = sum(pair == ("HGMMA", "HGMMA") for pair in itertools.pairwise(steps))
        assert unwaited > len(steps) / 2, name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shared_memory_is_within_the_architectures_limit(tmp_path: Path, cxx: str, architecture: str) -> None:
    """For the tiles that a launch picks there, from the constants of the source itself."""
    program = tmp_path / "sizes.cpp"
    program.write_text(
        '#include "simt.h"\n#include "anchored_attention/mma/tile.cuh"\n#include <cstdio>\n'
        "using namespace va_export;\n"
        "template <int kHeadDim> void print() {\n"
        f"  constexpr int kRowFragments = prefill_row_fragments({architecture}, kHeadDim);\n"
        '  std::printf("%d %d\\n", PrefillTile<__half, kHeadDim, kRowFragments>::kSharedBytes,\n'
        "              DecodeTile<__half, kHeadDim>::kSharedBytes);\n"
        "}\n"
        "int main() { print<64>(); print<80>(); print<96>(); print<128>(); }\n"
    )
    flags = ["-std=c++17", f"-I{Path(__file__).parent / 'simt'}", f"-I{PLUGINS}", "-Wno-unknown-pragmas"]
    subprocess.run([cxx, *flags, program, "-o", tmp_path / "sizes"], check=True)
    sizes = subprocess.run([tmp_path / "sizes"], capture_output=True, text=True, check=True).stdout
    numbers = [int(word) for word in sizes.split()]
    assert len(numbers) == 8
    assert max(numbers) <= SHARED_KB[architecture] * 1024
    assert max(numbers) <= 99 * 1024  # any of them runs anywhere


def test_shared_memory_of_the_hopper_kernel_is_within_its_limit(tmp_path: Path, cxx: str) -> None:
    program = tmp_path / "sizes.cpp"
    program.write_text(
        '#include "simt.h"\n#include "anchored_attention/hopper/tile.cuh"\n#include <cstdio>\n'
        "template <int... kHeadDims> void print() {\n"
        '  (std::printf("%d\\n", va_export::HopperTile<__half, kHeadDims>::kSharedBytes), ...);\n'
        "}\n"
        f"int main() {{ print<{', '.join(map(str, HEAD_DIMS))}>(); }}\n"
    )
    flags = ["-std=c++17", f"-I{Path(__file__).parent / 'simt'}", f"-I{PLUGINS}", "-Wno-unknown-pragmas"]
    subprocess.run([cxx, *flags, program, "-o", tmp_path / "sizes"], check=True)
    sizes = subprocess.run([tmp_path / "sizes"], capture_output=True, text=True, check=True).stdout
    numbers = [int(word) for word in sizes.split()]
    assert len(numbers) == len(HEAD_DIMS)
    assert max(numbers) <= SHARED_KB["90"] * 1024
    assert min(numbers) > 5 * 128 * 64 * 2  # a query tile, and two stages of key and value tiles
