"""Which kernels the library has for a GPU, and which its launches take (plugins/kernel_table)."""

from __future__ import annotations

import ctypes
import os
from typing import NamedTuple

from va_export.errors import VaExportError


class Phase(NamedTuple):
    """A row of the library's table, and the environment's variable that comes before it."""

    op: str
    name: str
    variable: str


PREFILL = Phase("anchored_attention", "prefill", "VA_EXPORT_ATTENTION_KERNEL")
DECODE = Phase("anchored_attention", "decode", "VA_EXPORT_ATTENTION_KERNEL")
PRODUCTS = Phase("subspace_score", "products", "VA_EXPORT_SCORE_PRODUCTS")
PHASES = (DECODE, PREFILL, PRODUCTS)
SIMPLE = "simple"  # the plain kernel of every phase, and what a launch takes until it is told otherwise
_BEST = "tensor_core"  # which the environment may say wherever there are several kernels


def bind(library: ctypes.CDLL) -> ctypes.CDLL:
    """Declares the functions of kernel_table.h on a loaded library."""
    phase = (ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p)
    library.va_kernels_name.argtypes = [*phase, ctypes.c_int]
    library.va_kernels_name.restype = ctypes.c_char_p
    library.va_kernels_select.argtypes = [*phase, ctypes.c_char_p]
    library.va_kernels_select.restype = ctypes.c_int
    library.va_kernels_selected.argtypes = [*phase]
    library.va_kernels_selected.restype = ctypes.c_char_p
    return library


def kernels_of(library: ctypes.CDLL, device: int, phase: Phase) -> tuple[str, ...]:
    """The kernels that the library has for that GPU, the plain one first; none where there is no such GPU."""
    names: list[str] = []
    while name := library.va_kernels_name(device, phase.op.encode(), phase.name.encode(), len(names)):
        names.append(name.decode())
    return tuple(names)


def select_kernel(library: ctypes.CDLL, device: int, phase: Phase, kernel: str) -> None:
    """Let launches on that GPU take a kernel, from the next one on; a captured graph keeps its own.

    Raises:
        VaExportError: the library has no such kernel for that GPU, or there is no such GPU.
    """
    error = library.va_kernels_select(device, phase.op.encode(), phase.name.encode(), kernel.encode())
    if error:
        names = kernels_of(library, device, phase)
        raise VaExportError(
            f"the plugin library has no kernel {kernel!r} for the {phase.name} of {phase.op} on GPU {device}",
            where="va_kernels_select",
            fix=f"choose one of {', '.join(names)}" if names else "check the GPU with nvidia-smi",
        )


def selected_kernel(library: ctypes.CDLL, device: int, phase: Phase) -> str:
    """What a launch on that GPU takes now, the environment included.

    Raises:
        VaExportError: the environment names a kernel that is none, or there is no such GPU.
    """
    refuse_unknown_kernels()
    name = library.va_kernels_selected(device, phase.op.encode(), phase.name.encode())
    if name is None:
        raise VaExportError(
            f"the plugin library has no kernels for GPU {device}",
            where="va_kernels_selected",
            fix="check the GPU with nvidia-smi",
        )
    return str(name.decode())


def refuse_unknown_kernels() -> None:
    """Raises VaExportError where the environment names a kernel that no library has: every launch would fail."""
    for variable, known in _KNOWN.items():
        name = os.environ.get(variable, "")
        if name and name not in known:
            raise VaExportError(
                f"{variable} is {name!r}, which is no kernel",
                where=variable,
                fix=f"set it to one of {', '.join(known)}, or unset it, and the self-test's choice counts",
            )


_KNOWN = {PREFILL.variable: (SIMPLE, "mma_sync", _BEST), PRODUCTS.variable: (SIMPLE, _BEST)}
