"""One door to the two TensorRTs: the full library and TensorRT-RTX, whose Python modules share one API.

Nothing else in the package imports `tensorrt` or `tensorrt_rtx`. What differs between the two (and between
TensorRT 10.13 and 11) is settled here: where the module comes from, network creation flags, and a loader trap
in RTX's wheel. The code keeps to the part of the API in `types`, which all of them have.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import importlib.util
import logging
import os
import re
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from va_export.errors import VaExportError
from va_export.tensorrt.alias_library import alias_loaded_library
from va_export.tensorrt.types import Builder, Network, PluginRegistry

Flavor = Literal["tensorrt", "tensorrt-rtx"]
FLAVORS: tuple[Flavor, ...] = get_args(Flavor)

LOG = logging.getLogger("va_export.tensorrt")
LOG.addHandler(logging.NullHandler())  # a library stays silent until its user configures logging

_MODULE_NAMES: dict[Flavor, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_INSTALL: dict[Flavor, str] = {
    "tensorrt": "install the `tensorrt` wheel from NVIDIA's own package index",
    "tensorrt-rtx": "pip install 'va-export[rtx]'",
}
_BARE_RTX_NAME = "libtensorrt_rtx.so"
_LOADED: dict[Flavor, TensorRT] = {}
_LOCK = threading.Lock()


@dataclass(frozen=True)
class TensorRT:
    """A loaded TensorRT.

    Attributes:
        flavor: which of the two.
        module: the Python module; typed as Any, since two modules of one API share no type.
        version: the module's version, e.g. `1.7.1.116`.
    """

    flavor: Flavor
    module: Any
    version: str

    @property
    def label(self) -> str:
        """Name and version for messages and reports."""
        return f"{'TensorRT-RTX' if self.flavor == 'tensorrt-rtx' else 'TensorRT'} {self.version}"

    def create_network(self, builder: Builder) -> Network:
        """An empty, strongly typed network: types come from the ONNX file and no builder flag changes them.

        TensorRT 10 must be asked for both properties; 11 and RTX have dropped flags that became the only way.
        """
        kinds = self.module.NetworkDefinitionCreationFlag.__members__
        flags = sum(1 << int(kinds[name]) for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if name in kinds)
        return builder.create_network(flags)

    def load_plugin_library(self, path: Path) -> None:
        """Load a plugin library into the process's registry; a copy of one that is loaded already is left alone.

        Raises:
            VaExportError: the file is missing, is no plugin library that this machine can load, or differs from
                one that is loaded already: a registry holds one plugin of a name.
        """
        if not path.is_file():
            raise VaExportError(
                "the plugin library does not exist", where=path, fix="build or install the plugins again"
            )
        digest = hashlib.sha256(path.read_bytes()).digest()
        known = _PLUGIN_LIBRARIES.setdefault(self.flavor, {})
        if digest in known:
            return
        registry: PluginRegistry = self.module.get_plugin_registry()
        try:
            handle = registry.load_library(str(path))
        except Exception as error:
            raise VaExportError(f"the plugin library cannot be loaded: {error}", where=path) from error
        if handle is None:
            fix = "build the plugins for this machine"
            if known:
                loaded = ", ".join(str(other) for other in known.values())
                fix = f"run it in a process of its own: {loaded} may hold plugins of the same names"
            raise VaExportError(f"{self.label} refused the plugin library", where=path, fix=fix)
        known[digest] = path

    def has_plugin(self, name: str, version: str, namespace: str) -> bool:
        """Whether a creator of that name is registered."""
        registry: PluginRegistry = self.module.get_plugin_registry()
        return registry.get_creator(name, version, namespace) is not None


_PLUGIN_LIBRARIES: dict[Flavor, dict[bytes, Path]] = {}  # by SHA-256


def available_flavors() -> tuple[Flavor, ...]:
    """The flavours whose Python module is installed; loads neither."""
    return tuple(flavor for flavor in FLAVORS if _is_installed(flavor))


def load_tensorrt(flavor: Flavor) -> TensorRT:
    """Import a TensorRT once in a process and make it safe to parse models with.

    Raises:
        VaExportError: it is not installed, not usable, or `flavor` is unknown.
    """
    if flavor not in _MODULE_NAMES:
        raise VaExportError(
            f"unknown engine flavour {flavor!r}", where="flavor", fix=f"use one of: {', '.join(FLAVORS)}"
        )
    with _LOCK:
        if flavor not in _LOADED:
            _LOADED[flavor] = _load(flavor)
        return _LOADED[flavor]


def _is_installed(flavor: Flavor) -> bool:
    # A type-stub package leaves a folder `tensorrt` without code, which Python takes for an empty package.
    spec = importlib.util.find_spec(_MODULE_NAMES[flavor])
    return spec is not None and spec.origin is not None


def _load(flavor: Flavor) -> TensorRT:
    if not _is_installed(flavor):
        raise VaExportError(
            f"the Python module {_MODULE_NAMES[flavor]} is not installed",
            where=_MODULE_NAMES[flavor],
            fix=_INSTALL[flavor],
        )
    try:
        module = importlib.import_module(_MODULE_NAMES[flavor])
    except (ImportError, OSError) as error:
        raise VaExportError(
            f"{_MODULE_NAMES[flavor]} is installed but cannot be imported: {error}",
            where=_MODULE_NAMES[flavor],
            fix=_INSTALL[flavor],
        ) from error
    if not hasattr(module, "Builder"):
        raise VaExportError(f"{_MODULE_NAMES[flavor]} has no builder", where=str(module.__file__), fix=_INSTALL[flavor])
    if flavor == "tensorrt-rtx":
        _answer_to_bare_name()
    return TensorRT(flavor, module, str(module.__version__))


def _answer_to_bare_name() -> None:
    """Let RTX's ONNX parser find its own core library.

    On the first node that a plugin serves, the parser calls dlopen("libtensorrt_rtx.so"), and ends the
    process when that fails; the wheel ships only `libtensorrt_rtx.so.1`. It does not matter who imported the
    module first.
    """
    if sys.platform != "linux" or _is_loadable(_BARE_RTX_NAME):
        return
    library = _loaded_rtx_library()
    try:
        alias_loaded_library(library, _BARE_RTX_NAME)
    except OSError as error:
        raise VaExportError(
            f"TensorRT-RTX's parser needs {_BARE_RTX_NAME} and an alias of it cannot be loaded: {error}",
            where=library,
            fix=f"link {library.parent / _BARE_RTX_NAME} to {library.name}",
        ) from error
    if not _is_loadable(_BARE_RTX_NAME):
        raise VaExportError(
            f"TensorRT-RTX's parser would not find {_BARE_RTX_NAME} and end the process",
            where=library,
            fix=f"link {library.parent / _BARE_RTX_NAME} to {library.name}",
        )


def _is_loadable(name: str) -> bool:
    """Whether `dlopen(name)` is answered by a library of this process that has TensorRT's registry."""
    try:
        library = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        return False
    return hasattr(library, "getPluginRegistry")


def _loaded_rtx_library() -> Path:
    pattern = re.compile(r"(/\S*/libtensorrt_rtx\.so[.\d]*)$")
    for line in Path("/proc/self/maps").read_text().splitlines():
        if match := pattern.search(line):
            return Path(match.group(1))
    raise VaExportError(
        "tensorrt_rtx was imported, but its core library is not in the process",
        where="tensorrt_rtx",
        fix=_INSTALL["tensorrt-rtx"],
    )


def select_polygraphy_backend(flavor: Flavor) -> None:
    """Point Polygraphy at a TensorRT; must run before Polygraphy's first import in the process.

    Raises:
        VaExportError: Polygraphy was imported earlier with the other choice.
    """
    wanted = "1" if flavor == "tensorrt-rtx" else "0"
    if "polygraphy.config" in sys.modules:
        uses_rtx = bool(getattr(sys.modules["polygraphy.config"], "USE_TENSORRT_RTX", False))
        if uses_rtx != (wanted == "1"):
            raise VaExportError(
                f"Polygraphy was imported before and is set to {'TensorRT-RTX' if uses_rtx else 'TensorRT'}",
                where="polygraphy",
                fix="call select_polygraphy_backend before anything imports polygraphy",
            )
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = wanted
