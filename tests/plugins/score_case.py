"""One scoring problem run on the SubspaceScore kernels compiled for the CPU, every buffer between guard zones."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from attention_case import encode
from numpy.typing import NDArray

from va_export.native.subspace_score_params import SubspaceScoreParams, SubspaceScoreReport
from va_export.settings import ScoreSettings

Array = NDArray[Any]
GUARD_BYTES = 256
POISON = 0xFF  # bytes of a buffer before a launch: NaNs


class GuardedBuffer:
    """Bytes aligned to 256 between two guard zones."""

    def __init__(self, size: int, data: bytes | None = None) -> None:
        self._memory = np.full(size + 4 * GUARD_BYTES, POISON, np.uint8)
        start = -self._memory.ctypes.data % GUARD_BYTES + GUARD_BYTES
        self.bytes = self._memory[start : start + size]
        self._outside = np.r_[0:start, start + size : self._memory.size]
        if data is not None:
            self.bytes[:] = np.frombuffer(data, np.uint8)

    @property
    def address(self) -> int:
        return self.bytes.ctypes.data

    def read(self, dtype: Any) -> Array:
        """The contents, after a look at the guard zones."""
        assert np.all(self._memory[self._outside] == POISON), "memory was written that is no output"
        return self.bytes.view(dtype).copy()


@dataclass(frozen=True)
class Scores:
    """What a launch wrote."""

    sharing_score: Array
    labels: Array
    self_expression: Array
    status: int
    iterations: int
    residual: float
    lambda_e: float
    lambda_z: float
    panels_left_out: int


def score_params(tokens: Array, settings: ScoreSettings, dtype: str = "float32") -> SubspaceScoreParams:
    """Sizes and settings of a launch, without pointers."""
    return SubspaceScoreParams.of(tokens.shape, dtype, settings)


def score_on_host(
    library: ctypes.CDLL,
    tokens: Array,
    settings: ScoreSettings,
    *,
    dtype: str = "float32",
    schedule: int = 0,
    blocks: int = 2,
) -> Scores:
    """Score tokens [N, D], which are rounded to `dtype`; threads are taken in the order of `schedule`."""
    library.simt_set_schedule(schedule)
    library.simt_set_grid(blocks, 1)
    n = tokens.shape[0]
    params = score_params(tokens, settings, dtype)
    with np.errstate(over="ignore"):
        given = np.ascontiguousarray(encode(np.asarray(tokens, np.float64), dtype)).tobytes()
    buffers = {
        "tokens": GuardedBuffer(len(given), given),
        "sharing_score": GuardedBuffer(4 * n),
        "labels": GuardedBuffer(8 * n),
        "self_expression": GuardedBuffer(4 * n * n),
        "report": GuardedBuffer(ctypes.sizeof(SubspaceScoreReport)),
        "workspace": GuardedBuffer(library.va_subspace_score_workspace_bytes(ctypes.byref(params))),
    }
    for name, buffer in buffers.items():
        setattr(params, name, buffer.address)
    params.workspace_bytes = buffers["workspace"].bytes.size
    assert library.va_subspace_score_launch(ctypes.byref(params), None) == 0
    assert buffers["tokens"].read(np.uint8).tobytes() == given
    buffers["workspace"].read(np.uint8)
    report = SubspaceScoreReport.from_buffer_copy(buffers["report"].read(np.uint8).tobytes())
    return Scores(
        sharing_score=buffers["sharing_score"].read(np.float32),
        labels=buffers["labels"].read(np.int64),
        self_expression=buffers["self_expression"].read(np.float32).reshape(n, n),
        status=report.status,
        iterations=report.iterations,
        residual=report.residual,
        lambda_e=report.lambda_e,
        lambda_z=report.lambda_z,
        panels_left_out=library.simt_panels_left_out(ctypes.c_void_p(buffers["workspace"].address)),
    )
