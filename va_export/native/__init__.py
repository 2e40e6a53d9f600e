"""The native library: where it is, what it holds, and its functions for PyTorch tensors.

Importing this package needs neither PyTorch nor a GPU; `anchored_attention.py` needs both.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
from pathlib import Path
from typing import Any, cast

from va_export.errors import VaExportError

LIBRARY_NAME = "libva_plugins.so"
LIBRARY_VARIABLE = "VA_EXPORT_PLUGIN_LIBRARY"


def plugin_library() -> Path:
    """The path of libva_plugins.so: `VA_EXPORT_PLUGIN_LIBRARY` where it is set, else the installed one.

    Raises:
        VaExportError: the variable names no file, or the package was installed without the library.
    """
    override = os.environ.get(LIBRARY_VARIABLE)
    if override:
        path = Path(override).absolute()
        if not path.is_file():
            raise VaExportError(
                f"{LIBRARY_VARIABLE} names no file",
                where=path,
                fix=f"Unset {LIBRARY_VARIABLE} or set it to a {LIBRARY_NAME}.",
            )
        return path
    # An editable install has two directories here: the sources and what was built.
    for directory in __path__:
        path = Path(directory, LIBRARY_NAME)
        if path.is_file():
            return path
    raise VaExportError(
        f"{LIBRARY_NAME} is missing: va-export was installed with VA_EXPORT_SKIP_PLUGINS=1, or not at all",
        where=Path(__file__).parent,
        fix="Run `pip install .` in the repository without VA_EXPORT_SKIP_PLUGINS, or set "
        f"{LIBRARY_VARIABLE} to a library that is built already.",
    )


@functools.cache
def load_library(path: Path) -> ctypes.CDLL:
    """Loads the library into this process; no GPU or driver is needed for that."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise VaExportError(
            f"the plugin library cannot be loaded: {error}",
            where=path,
            fix="Build it again on this machine with `pip install .`.",
        ) from error
    library.va_plugins_contract.argtypes = []
    library.va_plugins_contract.restype = ctypes.c_char_p
    library.va_plugins_error_string.argtypes = [ctypes.c_int]
    library.va_plugins_error_string.restype = ctypes.c_char_p
    return library


def launch_failure(library: ctypes.CDLL, path: Path, error: int) -> VaExportError:
    """What to say of a launch that returned `error`, a cudaError_t, from the library that lies at `path`."""
    from va_export.native.kernels import refuse_unknown_kernels

    refuse_unknown_kernels()
    words = library.va_plugins_error_string(error).decode()
    return VaExportError(
        f"the kernel launch failed: {words} (CUDA error {error})",
        where=path,
        fix="Check that the GPU is one of `va_export.native.plugin_contract()['cuda_archs']` and its driver of release "
        "580 or newer, which a library of CUDA 13 needs; rebuild with `pip install .` on this machine otherwise.",
    )


def plugin_contract() -> dict[str, Any]:
    """What the library says of itself.

    Returns:
        library_version, cuda_version, cuda_archs (CMake's names: "90-real" is native code, "90-virtual" PTX),
        tensorrt_headers, and `ops`: for each its name, version, namespace, fields (name, type), inputs and
        outputs (name, type, dims, optional), T (the element types) and max_head_dim.
    """
    return cast(dict[str, Any], json.loads(load_library(plugin_library()).va_plugins_contract()))
