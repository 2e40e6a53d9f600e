"""What nvcc makes of the kernels, for every architecture that the library holds code for."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from va_export.native import plugin_contract

PLUGINS = Path(__file__).parents[2] / "plugins"
ARCHITECTURES = ["80", "86", "87", "89", "90", "120"]
HOPPER_SOURCES = ("hopper_float16.cu", "hopper_bfloat16.cu")
KERNELS = {"anchored_attention.cu": 9, "mma_float16.cu": 12, "mma_bfloat16.cu": 12}
KERNELS |= dict.fromkeys(HOPPER_SOURCES, 4)
HEAD_DIMS = (64, 80, 96, 128)
BUILDS = [("anchored_attention.cu", "80"), ("anchored_attention.cu", "90")]
BUILDS += [(source, architecture) for architecture in ARCHITECTURES for source in ("mma_float16.cu", "mma_bfloat16.cu")]
BUILDS += [(source, "90a") for source in HOPPER_SOURCES]
LOCAL_MEMORY = re.compile(r"\b(LDL|STL)\b")
IDLE_TILES = 3  # prefill tiles of other architectures, one for each head_dim above 64: empty kernels

# Shared memory that one block may use, in KB: CUDA C++ Programming Guide, "Technical Specifications per Compute
# Capability".
SHARED_KB = {"80": 163, "86": 99, "87": 163, "89": 99, "90": 227, "120": 99}


def compile_kernel(nvcc: Path, source: str, architecture: str, output: Path, folder: str = "anchored_attention") -> str:
    """Compiles to an object file; what ptxas says."""
    code = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    flags = ["-O3", "-std=c++17", "-DNDEBUG", "-Xptxas=-v", f"-I{PLUGINS}", code]
    command = [nvcc, *flags, "-c", PLUGINS / folder / source, "-o", output]
    done = subprocess.run(command, capture_output=True, text=True)
    if "nsupported gpu architecture" in done.stderr:
        pytest.skip(f"{nvcc} does not know sm_{architecture}")
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize(("source", "architecture"), BUILDS)
def test_kernels_spill_no_register(tmp_path: Path, nvcc: Path, source: str, architecture: str) -> None:
    text = compile_kernel(nvcc, source, architecture, tmp_path / "kernel.o")
    usage = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text)
    assert len(usage) == KERNELS[source]
    assert set(usage) == {("0", "0", "0")}
    # Such as C7510, "wgmma.mma_async instructions are serialized", and C7508, "setmaxnreg ignored".
    assert not re.search(r"warning|advisory|Potential Performance Loss", text), text


# Of a phase of the solver, in bytes: around calls, which LOG.md keeps as open. The inner products hold none of it, as
# the machine code shows below.
SAVED_AROUND_CALLS = 64


@pytest.mark.parametrize("architecture", ["80", "90"])
def test_score_kernels_spill_no_register(tmp_path: Path, nvcc: Path, architecture: str) -> None:
    """Every phase is a function of its own with its sums in registers; the kernels' frames hold addresses."""
    text = compile_kernel(nvcc, "subspace_score.cu", architecture, tmp_path / "kernel.o", "subspace_score")
    usage = re.findall(
        r"Function properties for (\S+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
        text,
    )
    assert sum("_kernel" in name for name, *_ in usage) == 10  # three that load, four that solve, one of each other
    solving = {"solve", "advance", "update"}
    for name, frame, stored, loaded in usage:
        is_phase = any(part in name for part in solving) and "_kernel" not in name
        assert max(int(stored), int(loaded)) <= (SAVED_AROUND_CALLS if is_phase else 0), name
        assert frame == "0" or not (is_phase or "multiply" in name), name


@pytest.mark.parametrize("architecture", ["80", "86"])  # one of each tile
def test_ptx_holds_tensor_core_instructions(tmp_path: Path, nvcc: Path, architecture: str) -> None:
    """In every kernel but the idle ones: mma on 16 bits, ldmatrix, cp.async, and the wait for it."""
    output = tmp_path / "kernel.ptx"
    command = [nvcc, "-O3", "-std=c++17", "-DNDEBUG", f"-I{PLUGINS}", f"-arch=compute_{architecture}", "-ptx"]
    done = subprocess.run(
        [*command, PLUGINS / "anchored_attention" / "mma_float16.cu", "-o", output], capture_output=True, text=True
    )
    if "nsupported gpu architecture" in done.stderr:
        pytest.skip(f"{nvcc} does not know compute_{architecture}")
    assert done.returncode == 0, done.stderr
    kernels = [text for text in output.read_text().split(".entry")[1:] if "mma_attention_kernel" in text[:100]]
    busy = [text for text in kernels if "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32" in text]
    assert len(kernels) == 11
    assert len(busy) == len(kernels) - IDLE_TILES
    for text in busy:
        for instruction in ("ldmatrix.sync", "ldmatrix.sync.aligned.m8n8.x4.trans", "cp.async.cg.shared.global"):
            assert instruction in text
        assert ".local" not in text  # no local memory: it would be traffic in the main loop


@pytest.fixture(scope="module")
def machine_code(installed_library: Path, disassembler: Path) -> Callable[[str, str], list[str]]:
    """The instructions of the installed library's kernels for one architecture, by a part of the kernels' name."""
    environment = {**os.environ, "PATH": f"{disassembler.parent}:{os.environ['PATH']}"}  # it runs nvdisasm

    def read(architecture: str, name: str) -> list[str]:
        if not any(re.fullmatch(f"{architecture}(-real)?", known) for known in plugin_contract()["cuda_archs"]):
            pytest.skip(f"the installed library was built without code for sm_{architecture}")
        command = [disassembler, "-sass", "-arch", f"sm_{architecture}", installed_library]
        text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        parts = text.split("Function : ")[1:]
        return [part for part in parts if name in part.split("\n")[0]]

    return read


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_machine_code_holds_tensor_core_instructions(
    machine_code: Callable[[str, str], list[str]], architecture: str
) -> None:
    kernels = machine_code(architecture, "mma_attention_kernel")
    assert len(kernels) == 22  # 11 for each type
    assert sum("HMMA.16816" in part for part in kernels) == len(kernels) - 2 * IDLE_TILES
    assert not [part for part in kernels if LOCAL_MEMORY.search(part)]


@pytest.mark.parametrize("architecture", ["80", "90"])  # where they are taken without being asked for
def test_machine_code_of_the_solver_multiplies_on_tensor_cores(
    machine_code: Callable[[str, str], list[str]], architecture: str
) -> None:
    """Three products of TF32 numbers each, and nothing between two of them that goes to local memory."""
    kernels = machine_code(architecture, "solve_kernel")
    assert len(kernels) == 4
    for part in kernels:
        instructions = re.findall(r"/\*[0-9a-f]{4,5}\*/\s+([^;]*);", part)
        products = [i for i, text in enumerate(instructions) if "HMMA" in text]
        assert all("HMMA.1688.F32.TF32" in instructions[i] for i in products)
        name = part.split("\n")[0]
        # A step of 8 is 48 or 12 products; they stand there for each product of a phase, some more than once.
        step = 48 if "TensorProduct" in name else 12
        assert len(products) % step == 0
        assert len(products) >= (3 * 4 * step if step == 48 else 4 * step if "Tensor" in name else 0)
        assert bool(products) == ("Tensor" in name)
        for i, j in itertools.pairwise(products):
            between = instructions[i:j] if j - i < 100 else []
            assert not [text for text in between if LOCAL_MEMORY.search(text)]


def test_machine_code_of_the_hopper_kernel_keeps_its_products_under_way(
    machine_code: Callable[[str, str], list[str]],
) -> None:
    """Each step of both products stands there twice, in the loop and for the first or last tile.

    Products are waited for in four places; serialised wgmma would wait after every step.
    """
    kernels = machine_code("90a", "hopper_attention_kernel")
    assert len(kernels) == 2 * len(HEAD_DIMS)
    for part in kernels:
        (head_dim,) = (int(number) for number in re.findall(r"HopperTileI\w+?Li(\d+)E", part.split("\n")[0]))
        scores, weighted = (
            re.findall(r"HGMMA\.64x128x16\.F32(?:\.BF16)? \w+, gdesc", part),
            re.findall(r"HGMMA.*tnspB", part),
        )
        assert len(scores) == 2 * head_dim // 16
        assert len(weighted) == 2 * 128 // 16
        assert len(re.findall(r"WARPGROUP\.DEPBAR", part)) == 4
        assert "UTMALDG.4D" in part
        assert len(re.findall("USETMAXREG", part)) == 2
        assert not LOCAL_MEMORY.search(part)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shared_memory_is_within_the_architectures_limit(tmp_path: Path, cxx: str, architecture: str) -> None:
    """For the tiles that a launch picks there, from the constants of the source itself."""
    program = tmp_path / "sizes.cpp"
    program.write_text(
        '#include "simt.h"\n#include "anchored_attention/mma_tile.cuh"\n#include <cstdio>\n'
        "using namespace va_export;\n"
        "template <int kHeadDim> void print() {\n"
        f"  constexpr int kBlocks = prefill_row_blocks({architecture}, kHeadDim);\n"
        '  std::printf("%d %d\\n", PrefillTile<__half, kHeadDim, kBlocks>::kSharedBytes,\n'
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
        '#include "simt.h"\n#include "anchored_attention/hopper_tile.cuh"\n#include <cstdio>\n'
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
