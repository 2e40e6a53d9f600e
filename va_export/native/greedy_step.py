"""The end of a greedy decode step on the GPU (plugins/greedy_step/greedy_step.h), for ctypes."""

from __future__ import annotations

import ctypes


class GreedyStepParams(ctypes.Structure):
    """Field by field what `VaGreedyStepParams` is; pointers are device addresses."""

    _fields_ = (
        ("struct_bytes", ctypes.c_size_t),
        ("logits", ctypes.c_void_p),
        ("token_ids", ctypes.c_void_p),
        ("past_length", ctypes.c_void_p),
        ("position_ids", ctypes.c_void_p),
        ("chosen", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("vocab", ctypes.c_int64),
        ("axes", ctypes.c_int64),
    )

    def __init__(self, **values: object) -> None:
        super().__init__(struct_bytes=ctypes.sizeof(type(self)), **values)


def bind(library: ctypes.CDLL) -> ctypes.CDLL | None:
    """Declares the function on a loaded library; None where the library is older than it."""
    try:
        launch = library.va_greedy_step_launch
    except AttributeError:
        return None
    launch.argtypes = [ctypes.POINTER(GreedyStepParams), ctypes.c_void_p]
    launch.restype = ctypes.c_int
    return library
