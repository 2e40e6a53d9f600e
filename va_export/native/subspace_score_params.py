"""The structs of the C interface (plugins/subspace_score/subspace_score.h), for ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Self

from va_export.settings import ScoreSettings

MAX_TOKENS = 65536
MAX_DIM = 32768
MAX_PCA_RANK = 256
MAX_SUBSPACES = 128
DTYPE_CODES = {"float16": 0, "bfloat16": 1, "float32": 2}
SOLVED, EQUAL_TOKENS, NOT_FINITE, LONE_TOKEN, OVERFLOW, NO_RESULT = range(6)


class SubspaceScoreReport(ctypes.Structure):
    """Field by field what `VaSubspaceScoreReport` is: written on the device."""

    _fields_ = (
        ("status", ctypes.c_int32),
        ("iterations", ctypes.c_int32),
        ("residual", ctypes.c_float),
        ("reserved", ctypes.c_float),
        ("lambda_e", ctypes.c_double),
        ("lambda_z", ctypes.c_double),
    )


class SubspaceScoreParams(ctypes.Structure):
    """Field by field what `VaSubspaceScoreParams` is; the C side refuses another `struct_bytes`."""

    _fields_ = (
        ("struct_bytes", ctypes.c_size_t),
        ("tokens", ctypes.c_void_p),
        ("sharing_score", ctypes.c_void_p),
        ("labels", ctypes.c_void_p),
        ("self_expression", ctypes.c_void_p),
        ("report", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_size_t),
        ("token_count", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
        ("n_subspaces", ctypes.c_int32),
        ("pca_rank", ctypes.c_int32),
        ("max_iter", ctypes.c_int32),
        ("rho", ctypes.c_float),
        ("alpha_e", ctypes.c_float),
        ("alpha_z", ctypes.c_float),
        ("eps", ctypes.c_float),
    )

    def __init__(self, **values: object) -> None:
        super().__init__(struct_bytes=ctypes.sizeof(type(self)), **values)

    @classmethod
    def of(cls, shape: Sequence[int], dtype: str, settings: ScoreSettings, **pointers: object) -> Self:
        """For tokens (N, D) of a type, scored as `settings` say."""
        stated = {name: getattr(settings, name) for name, _ in cls._fields_ if hasattr(settings, name)}
        return cls(token_count=shape[0], dim=shape[1], dtype=DTYPE_CODES[dtype], **stated, **pointers)


def bind(library: ctypes.CDLL) -> ctypes.CDLL:
    """Declares the two functions of subspace_score.h on a loaded library."""
    params = ctypes.POINTER(SubspaceScoreParams)
    library.va_subspace_score_workspace_bytes.argtypes = [params]
    library.va_subspace_score_workspace_bytes.restype = ctypes.c_size_t
    library.va_subspace_score_launch.argtypes = [params, ctypes.c_void_p]
    library.va_subspace_score_launch.restype = ctypes.c_int
    return library
