"""The machine and the libraries that figures are taken with and engines are built for, in words."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

_LIBRARIES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "torch",
    "transformers",
    "triton",
    "numpy",
    "onnx",
)
_DRIVER = Path("/proc/driver/nvidia")


def environment() -> dict[str, Any]:
    """Processor, cores, memory, GPU and `software`."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": gpu_name(),
        **software(),
    }


def software() -> dict[str, Any]:
    """The operating system, Python and the libraries that decide numbers and speed."""
    return {"os": platform.platform(), "python": platform.python_version(), "libraries": library_versions()}


def library_versions() -> dict[str, str]:
    """Versions of those of the libraries that are installed."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def gpu_name() -> str | None:
    """The first NVIDIA GPU's name as its driver tells it, or None where there is none."""
    models = [line for card in nvidia_cards() for line in card if line.startswith("Model:")]
    return models[0].split(":", 1)[1].strip() if models else None


def nvidia_cards() -> list[list[str]]:
    """What the driver says of every GPU, line by line; empty without a driver. No library is loaded for it."""
    files = sorted(_DRIVER.glob("gpus/*/information"))
    return [path.read_text(encoding="utf-8", errors="replace").splitlines() for path in files]


def nvidia_driver() -> str | None:
    """The driver's own line of its version; None without one."""
    version = _DRIVER / "version"
    return version.read_text(encoding="utf-8", errors="replace") if version.is_file() else None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
