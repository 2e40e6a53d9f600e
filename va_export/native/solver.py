"""libva_solver.so: the self-expression solver for the CPU, compiled and threaded, on NumPy arrays.

`va_export.anchor.self_expression` is the same iteration in NumPy or PyTorch, which takes over where the library is
not installed (VA_EXPORT_SKIP_PLUGINS=1).
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import va_export.native
from va_export.errors import VaExportError

LIBRARY_NAME = "libva_solver.so"
LIBRARY_VARIABLE = "VA_EXPORT_SOLVER_LIBRARY"
THREADS_VARIABLE = "VA_EXPORT_SOLVER_THREADS"

# Multiplications of an iteration that repay waking another thread, about 0.1 ms of one.
_WORK_PER_THREAD = 4_000_000

Array = np.ndarray[Any, Any]


class _Problem(ctypes.Structure):
    """VaSolverProblem of plugins/solver/solver.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n", "m", "r")),
        *((name, ctypes.c_void_p) for name in ("basis", "f_t", "gain", "spectrum")),
        ("rho", ctypes.c_double),
        ("error_threshold", ctypes.c_double),
        ("state", ctypes.c_void_p),
        ("error", ctypes.c_void_p),
        ("is_double", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


@dataclass(frozen=True)
class SolverArrays:
    """What the native iteration works on: contiguous, of one type, float32 or float64.

    Attributes:
        basis: P [D+1, R]; f_t: Fᵀ [N, R]; gain: [R]; spectrum: [R], the diagonal of FFᵀ.
        state: Xᵀ [N, N], and error: E'ᵀ [N, D+1]: both are updated in place.
    """

    basis: Array
    f_t: Array
    gain: Array
    spectrum: Array
    state: Array
    error: Array


def solver_library() -> Path | None:
    """The path of libva_solver.so: `VA_EXPORT_SOLVER_LIBRARY` where it is set, else the installed one, if any.

    Raises:
        VaExportError: the variable names no file.
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
    candidates = (Path(directory, LIBRARY_NAME) for directory in va_export.native.__path__)
    return next((path for path in candidates if path.is_file()), None)


class NativeIteration:
    """The solver's state in the library, between calls of `advance`; use `native_iteration`."""

    def __init__(self, library: ctypes.CDLL, handle: int) -> None:
        self._library, self._handle = library, handle

    def advance(self, max_iterations: int, eps: float) -> tuple[int, float]:
        """Iterate until the residual is below eps (or not a number), at most so often: (iterations, residual)."""
        residual = ctypes.c_double()
        iterations = self._library.va_solver_advance(self._handle, max_iterations, eps, ctypes.byref(residual))
        return int(iterations), residual.value


@contextmanager
def native_iteration(
    path: Path, arrays: SolverArrays, rho: float, error_threshold: float, *, threads: int = 0, isa: str | None = None
) -> Iterator[NativeIteration]:
    """Set the library's solver up, and free it afterwards.

    Args:
        path: of the library.
        arrays: see `SolverArrays`.
        rho, error_threshold: ρ, and λ_e/√λ_z.
        threads: how many; 0 chooses. The result does not depend on it.
        isa: "avx512", "avx2" or "baseline"; None is the best that this processor has.

    Raises:
        VaExportError: the library cannot be loaded, memory is short, or the processor lacks `isa`.
    """
    library = _load(path)
    n, r = arrays.f_t.shape
    m = arrays.basis.shape[0]
    problem = _Problem(
        n=n,
        m=m,
        r=r,
        rho=rho,
        error_threshold=error_threshold,
        is_double=int(arrays.state.dtype == np.float64),
        threads=threads or _thread_count(n * r * (n + m)),
    )
    shapes = {"basis": (m, r), "f_t": (n, r), "gain": (r,), "spectrum": (r,), "state": (n, n), "error": (n, m)}
    for name, shape in shapes.items():
        array = getattr(arrays, name)
        if array.shape != shape or array.dtype != arrays.state.dtype or not array.flags.c_contiguous:
            raise ValueError(f"{name} is {array.shape} {array.dtype}, not a contiguous {shape} {arrays.state.dtype}")
        setattr(problem, name, array.ctypes.data)
    handle = library.va_solver_create(ctypes.byref(problem), isa.encode() if isa else None)
    if not handle:
        raise VaExportError(
            f"no memory for the solver of {n} tokens" + (f", or no {isa} on this processor" if isa else ""),
            where="subspace_score",
            fix="score fewer frames, or free memory",
        )
    try:
        yield NativeIteration(library, handle)
    finally:
        library.va_solver_destroy(handle)


def finish_state(path: Path, state: Array, rho: float) -> None:
    """Turn the state Xᵀ [N, N] into C [N, N], in place."""
    _load(path).va_solver_finish(state.ctypes.data, state.shape[0], rho, int(state.dtype == np.float64))


def _thread_count(work: int) -> int:
    """Threads for an iteration of `work` multiplications: no more than it repays, nor than this process may use."""
    available = len(os.sched_getaffinity(0))
    for variable in (THREADS_VARIABLE, "OMP_NUM_THREADS"):
        if (asked := os.environ.get(variable, "")).isdigit() and int(asked) > 0:
            available = min(int(asked), available)
            break
    return max(1, min(available, work // _WORK_PER_THREAD))


@functools.cache
def _load(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise VaExportError(
            f"the solver's library cannot be loaded: {error}",
            where=path,
            fix="Build it again on this machine with `pip install .`.",
        ) from error
    library.va_solver_create.argtypes = [ctypes.POINTER(_Problem), ctypes.c_char_p]
    library.va_solver_create.restype = ctypes.c_void_p
    library.va_solver_advance.argtypes = [
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_double,
        ctypes.POINTER(ctypes.c_double),
    ]
    library.va_solver_advance.restype = ctypes.c_int64
    library.va_solver_destroy.argtypes = [ctypes.c_void_p]
    library.va_solver_destroy.restype = None
    library.va_solver_finish.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_int32]
    library.va_solver_finish.restype = None
    return library
