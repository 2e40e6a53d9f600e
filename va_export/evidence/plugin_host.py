"""The TensorRT plugin object without TensorRT: made, serialised, attached and enqueued by plugins/host."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from va_export.native.anchored_attention_params import AnchoredAttentionParams

HOST_NAME = "libva_plugin_host.so"
# TensorRT's DataType, of the types that the plugin may be offered.
TYPE_CODES = {"float32": 0, "float16": 1, "int8": 2, "int32": 3, "bool": 4, "bfloat16": 7, "int64": 8}
REFUSED_BY = {1: "types", 2: "formats", 3: "configuration", 4: "output type"}


class _Tensor(ctypes.Structure):
    _fields_ = (("rank", ctypes.c_int32), ("type", ctypes.c_int32), ("sizes", ctypes.c_int64 * 8))


class PluginHost:
    """One plugin library's creators, called as TensorRT calls them.

    Args:
        host: the library that CMake's target va_plugin_host builds.
        library: libva_plugins.so, or another with getCreators and setLoggerFinder.
    """

    def __init__(self, host: Path, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._host = ctypes.CDLL(str(host))
        pointer, params = ctypes.c_void_p, ctypes.POINTER(AnchoredAttentionParams)
        signatures: dict[str, tuple[Any, list[Any]]] = {
            "use": (None, [pointer, pointer]),
            "log": (ctypes.c_char_p, []),
            "make": (pointer, [params, ctypes.c_int]),
            "attach": (pointer, [pointer]),
            "release": (None, [pointer]),
            "timing_cache_id": (ctypes.c_char_p, [pointer]),
            "build": (ctypes.c_int, [pointer, ctypes.POINTER(_Tensor), ctypes.c_int32]),
            "workspace_bytes": (ctypes.c_size_t, [pointer, params]),
            "enqueue": (ctypes.c_int, [pointer, params, pointer]),
        }
        for name, (result, arguments) in signatures.items():
            function = getattr(self._host, f"va_plugin_host_{name}")
            function.restype, function.argtypes = result, arguments
        symbols = (self._library.getCreators, self._library.setLoggerFinder)
        self._host.va_plugin_host_use(*(ctypes.cast(symbol, pointer) for symbol in symbols))

    def log(self) -> str:
        """What the library logged since the last call."""
        text: bytes = self._host.va_plugin_host_log()
        return text.decode()

    def make(self, params: AnchoredAttentionParams, *, serialised: bool = True) -> Plugin | None:
        """A plugin with params' scale and is_causal, through serialisation; None where the creator refuses."""
        handle = self._host.va_plugin_host_make(ctypes.byref(params), int(serialised))
        return None if handle is None else Plugin(self._host, handle)


class Plugin:
    """A plugin object; freed with its Python object."""

    def __init__(self, host: ctypes.CDLL, handle: int) -> None:
        self._host, self._handle = host, handle

    def __del__(self) -> None:
        self._host.va_plugin_host_release(self._handle)

    @property
    def timing_cache_id(self) -> str:
        """The name under which TensorRT keeps its timings."""
        text: bytes = self._host.va_plugin_host_timing_cache_id(self._handle)
        return text.decode()

    def attach(self) -> Plugin:
        """A clone for a context of its own."""
        return Plugin(self._host, self._host.va_plugin_host_attach(self._handle))

    def build(self, tensors: Sequence[tuple[Sequence[int], str]]) -> str | None:
        """The checks of a build, for (sizes, type) of the inputs and then the output.

        Returns:
            None, or what refuses: a value of REFUSED_BY.
        """
        described = [_Tensor(len(sizes), TYPE_CODES[name], (ctypes.c_int64 * 8)(*sizes)) for sizes, name in tensors]
        array = (_Tensor * len(described))(*described)
        status: int = self._host.va_plugin_host_build(self._handle, array, len(described) - 1)
        return None if status == 0 else REFUSED_BY[status]

    def workspace_bytes(self, largest: AnchoredAttentionParams) -> int:
        """What the plugin declares when these are the largest sizes of a profile."""
        return int(self._host.va_plugin_host_workspace_bytes(self._handle, ctypes.byref(largest)))

    def enqueue(self, params: AnchoredAttentionParams, stream: int | None = None) -> int:
        """onShapeChange and enqueue on contiguous tensors; TensorRT's status, 0 where all is well."""
        return int(self._host.va_plugin_host_enqueue(self._handle, ctypes.byref(params), stream))
