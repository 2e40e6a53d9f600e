"""The table of backends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from va_export.errors import VaExportError

if TYPE_CHECKING:
    from va_export.bundle.manifest import Manifest
    from va_export.runtime.backends.backend import Backend

ATTENTIONS = ("plugin", "native")
BACKENDS = ("onnxruntime", "tensorrt", "tensorrt-rtx", "torch")


def open_backend(
    name: str,
    manifest: Manifest,
    attention: str | None = None,
    devices: Sequence[int] | None = None,
    trust_plugins: bool = False,
) -> Backend:
    """Open a bundle's components.

    Args:
        name: one of `BACKENDS`.
        attention: `plugin` or `native`, where both forms of the decoder are there; None: the form that the bundle
        was made with.
        devices: GPUs that the decoder's shards are spread over, the other components on the first; None: one GPU, or
            the CPU.
        trust_plugins: execute code of the bundle that nothing else vouches for.

    Raises:
        VaExportError: an unknown name, a library that is not installed, a component that the bundle lacks, or devices
            for a backend that runs on the CPU.
    """
    form = attention or manifest.data.attention
    if name == "onnxruntime":
        from va_export.runtime.backends.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(manifest, form, devices)
    if name in ("tensorrt", "tensorrt-rtx"):
        from va_export.bundle.trust import admit_code
        from va_export.runtime.backends.tensorrt import TensorRTBackend

        return TensorRTBackend(manifest, name, admit_code(manifest, name, trust_plugins), devices)
    if name == "torch":
        from va_export.runtime.backends.pytorch import TorchBackend

        if devices is not None:
            raise VaExportError(
                "the torch backend runs on the CPU",
                where="--devices",
                fix="leave --devices out, or use another backend",
            )
        return TorchBackend(manifest)
    raise VaExportError(f"unknown backend {name!r}", where="backend", fix=f"use one of: {', '.join(BACKENDS)}")


def precision_advice(backend: Backend, precision: str) -> str | None:
    """What to tell people whose precision gains nothing where it runs; None if there is nothing."""
    if (backend.name, backend.device, precision) != ("onnxruntime", "cpu", "fp16"):
        return None
    return (
        "ONNX Runtime converts float16 to float32 on a CPU: this bundle takes no less memory here than one in float32,"
        " and opens more slowly. For CPUs export with --precision fp32, or with bf16 for --backend torch where the"
        " processor multiplies bfloat16 (AMX)"
    )
