"""Where the compiler and the headers are: this machine's own first, else what the package index carries.

Standard library only: it runs inside pip's build environment.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

OLDEST_NVCC = (12, 0)

# nvcc as wheels, one release of CUDA. 13.0 is the oldest release of CUDA 13, the first whose wheels share one
# directory as a toolkit does: what is linked with its static runtime asks for the oldest driver (580), and its PTX
# is understood by every later one. nvcc itself is only the driver program; nvvm is the device compiler, crt and
# cccl hold headers that cuda_fp16.h includes, and runtime holds CUDA's headers and the static runtime.
NVCC_WHEELS = (
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-cccl==13.0.85",
    "nvidia-cuda-runtime==13.0.96",
)

# No wheel of NVIDIA's has TensorRT's C++ headers. This one carries those of TensorRT 10.14 (Apache-2.0), and a
# plugin built with them loads in TensorRT-RTX 1.7. It is fetched without its dependencies (PyTorch among them), and
# nothing in it but the headers is used.
HEADER_WHEEL = "kernel-lens==2.0.1"
HEADER_WHEEL_SHA256 = "07cc714e8b5e7f34b672f7c7fad93febe7c747be5837ba276b1527370134ffe0"
HEADERS_IN_WHEEL = "kernel_lens/include/tensorrt/"


def find_nvcc() -> Path | None:
    """This machine's nvcc (CUDACXX, CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda), or None."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    candidates = [os.environ.get("CUDACXX"), *(str(Path(home, "bin", "nvcc")) for home in homes)]
    candidates += ["nvcc", "/usr/local/cuda/bin/nvcc"]
    for candidate in filter(None, candidates):
        path = shutil.which(candidate)
        if path is not None and nvcc_version(Path(path)) >= OLDEST_NVCC:
            return Path(path)
    return None


def find_nvcc_in_wheels() -> Path | None:
    """The nvcc that NVCC_WHEELS put into this Python environment."""
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or []) if spec else []:
        nvcc = Path(root, "cu13", "bin", "nvcc")
        if nvcc.is_file():
            return nvcc
    return None


def nvcc_version(nvcc: Path) -> tuple[int, int]:
    """(major, minor), or (0, 0) where the program does not answer as nvcc does."""
    try:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return (0, 0)
    match = re.search(r"release (\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def find_tensorrt_headers() -> Path | None:
    """The directory of this machine's NvInferRuntime.h with plugin interface V3 (TensorRT 10+), or None."""
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    roots = [os.environ.get("TENSORRT_ROOT"), "/usr/local/tensorrt", "/usr/local", "/usr"]
    for root in filter(None, roots):
        for directory in (Path(root, "include"), Path(root, "include", multiarch)):
            header = directory / "NvInferRuntime.h"
            if header.is_file() and "IPluginCreatorV3One" in header.read_text(errors="replace"):
                return directory
    return None


def fetch_tensorrt_headers(directory: Path) -> Path:
    """Downloads HEADER_WHEEL with pip, checks its hash and unpacks the headers into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    try:
        subprocess.run([*command, "--dest", str(directory), HEADER_WHEEL], check=True)
    except subprocess.CalledProcessError as error:
        raise SystemExit(
            f"TensorRT's headers are not on this machine and {HEADER_WHEEL} could not be fetched. "
            "Set TENSORRT_ROOT to a TensorRT 10+ SDK, or VA_EXPORT_SKIP_PLUGINS=1 to install without the plugins."
        ) from error
    (wheel,) = directory.glob("kernel_lens-*.whl")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != HEADER_WHEEL_SHA256:
        raise SystemExit(f"{wheel.name} has sha256 {found}, expected {HEADER_WHEEL_SHA256}: not used")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory, [n for n in archive.namelist() if n.startswith(HEADERS_IN_WHEEL)])
    return directory / HEADERS_IN_WHEEL
