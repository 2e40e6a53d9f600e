"""The machine that evidence comes from: its GPU and libraries, the commit, and the ceilings measured there."""

from __future__ import annotations

import os
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

from va_export.errors import VaExportError
from va_export.evidence.timing import time_cuda
from va_export.machine import software

COMMIT_VARIABLE = "VA_EXPORT_COMMIT"
MATMUL_SIZE = 8192
COPY_BYTES = 1 << 30


def describe_device() -> dict[str, Any]:
    """The first GPU (that PyTorch sees, or nvidia-smi) and the libraries.

    Returns:
        name, driver, cuda and torch (both None where PyTorch is absent or has no CUDA), memory, compute_capability
        ("9.0"), os, python, libraries (name to version).

    Raises:
        VaExportError: there is no GPU.
    """
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader"]
    try:
        line = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise VaExportError(
            "no NVIDIA GPU answers here",
            where="nvidia-smi",
            fix="run this on a machine with a GPU; everything that needs none is in scripts/test.sh",
        ) from error
    name, driver, memory, capability = (part.strip() for part in line.split(","))
    return {
        "name": name,
        "driver": driver,
        **_torch_and_cuda(),
        "memory": memory,
        "compute_capability": capability,
        **software(),
    }


def describe_cpu() -> dict[str, Any]:
    """The same for a trial without a GPU; its name "cpu" keeps the file out of the evidence."""
    return {"name": "cpu", "driver": None, **_torch_and_cuda(), **software()}


def current_commit(repository: Path) -> str:
    """HEAD's hash, with `-dirty` where tracked files differ from it; VA_EXPORT_COMMIT where there is no repository.

    Raises:
        VaExportError: neither says which commit this is.
    """
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
    except OSError:
        pass  # no git
    commit = os.environ.get(COMMIT_VARIABLE, "").strip()
    if not commit:
        raise VaExportError(
            "nothing says which commit this is, and evidence without it proves nothing",
            where=repository,
            fix=f"run it in a git checkout, or set {COMMIT_VARIABLE} to the output of `git rev-parse HEAD`",
        )
    return commit


def measure_ceilings(repeats: int = 20) -> dict[str, float | None]:
    """What this GPU reaches at best, by PyTorch: a bf16 product of 8192³ on random data (TFLOP/s), and a copy of
    1 GiB (TB/s, bytes read plus bytes written). Both None where PyTorch is absent or sees no GPU."""
    if not _torch_sees_cuda():
        return {"matmul_bf16_tflops": None, "copy_tb_per_s": None}
    import torch

    size = MATMUL_SIZE
    factors = [torch.randn(2, size, size, device="cuda").to(torch.bfloat16) for _ in range(2)]
    product = torch.empty(size, size, device="cuda", dtype=torch.bfloat16)
    matmul = time_cuda([partial(torch.matmul, *pair, out=product) for pair in factors], repeats=repeats)
    source, target = (torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda") for _ in range(2))
    source.random_(0, 256)
    copy = time_cuda([partial(target.copy_, source)], repeats=repeats)
    del factors, product, source, target
    torch.cuda.empty_cache()  # others may want the memory while this process waits for them
    return {
        "matmul_bf16_tflops": 2 * size**3 / matmul.median_us / 1e6,
        "copy_tb_per_s": 2 * COPY_BYTES / copy.median_us / 1e6,
    }


def _torch_sees_cuda() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def _torch_and_cuda() -> dict[str, str | None]:
    try:
        import torch
    except ImportError:
        return {"cuda": None, "torch": None}
    return {"cuda": torch.version.cuda, "torch": torch.__version__}
