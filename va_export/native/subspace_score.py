"""SubspaceScore on CUDA tensors: the kernels that the TensorRT plugin runs, called from PyTorch.

`va_export.anchor.subspace_score` is the same function for any device, and takes these kernels for CUDA tensors where
the environment says VA_EXPORT_SCORE_KERNEL=cuda: by name, until a GPU has shown them right.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from va_export.errors import VaExportError
from va_export.native import launch_failure, load_library, plugin_library
from va_export.native.subspace_score_params import (
    DTYPE_CODES,
    MAX_DIM,
    MAX_PCA_RANK,
    MAX_SUBSPACES,
    MAX_TOKENS,
    SubspaceScoreParams,
    SubspaceScoreReport,
    bind,
)
from va_export.settings import ScoreSettings

KERNEL_VARIABLE = "VA_EXPORT_SCORE_KERNEL"
# How the kernels' solver multiplies; it comes before what was selected (va_export/native/kernels.py).
PRODUCTS_VARIABLE = "VA_EXPORT_SCORE_PRODUCTS"
PRODUCTS = ("simple", "tensor_core")
_WHERE = "subspace_score_cuda"
_EAGER = "va_export.anchor.subspace_score"


@dataclass(frozen=True)
class CudaScore:
    """What a launch queued; reading `report` waits for it.

    Attributes:
        sharing_score: [N] float32; labels: [N] int64. Where the report's status is not SOLVED, scores are 0, and labels
            -1, or 0 where all tokens are equal.
        self_expression: C [N, N] float32, or None where it was not asked for.
        report_bytes: a `SubspaceScoreReport` on the device.
    """

    sharing_score: Tensor
    labels: Tensor
    self_expression: Tensor | None
    report_bytes: Tensor

    def report(self) -> SubspaceScoreReport:
        """What the kernels found out; synchronises with the device."""
        return SubspaceScoreReport.from_buffer_copy(self.report_bytes.cpu().numpy().tobytes())


def cuda_kernel_serves(tokens: Tensor, settings: ScoreSettings, dtype: str) -> bool:
    """Whether `subspace_score` takes the CUDA kernels for these tokens: asked for by name, and within their limits."""
    return (
        os.environ.get(KERNEL_VARIABLE) == "cuda"
        and tokens.device.type == "cuda"
        and dtype == "float32"
        and not _fault(tokens, settings)
    )


def subspace_score_cuda(tokens: Tensor, settings: ScoreSettings, *, self_expression: bool = False) -> CudaScore:
    """Queue the whole score on the current CUDA stream, without synchronising.

    Args:
        tokens: [N, D] on a GPU; float16, bfloat16 or float32; N at least max(2, n_subspaces) and at most 65536, D at
            most 32768. NaN or infinity, a zero token, one that is orthogonal to all others, or a solver that ends
            without a result makes every score 0 and every label -1, and the report says which.
        settings: `n_subspaces` at most 128, `pca_rank` at most 256.
        self_expression: whether to write C too, N² floats.

    Raises:
        VaExportError: device, dtype, sizes or settings outside what is said above, no plugin library, or a failed
            launch.
    """
    fault = _fault(tokens, settings)
    if fault:
        raise VaExportError(fault, where=_WHERE, fix=f"Stay within the limits of this function, or use {_EAGER}.")
    _check_device(tokens)
    tokens = tokens.detach().contiguous()
    n, device = tokens.shape[0], tokens.device
    result = CudaScore(
        sharing_score=torch.empty(n, dtype=torch.float32, device=device),
        labels=torch.empty(n, dtype=torch.int64, device=device),
        self_expression=torch.empty(n, n, dtype=torch.float32, device=device) if self_expression else None,
        report_bytes=torch.empty(ctypes.sizeof(SubspaceScoreReport), dtype=torch.uint8, device=device),
    )
    params = SubspaceScoreParams.of(
        tokens.shape,
        _name(tokens.dtype),
        settings,
        tokens=tokens.data_ptr(),
        sharing_score=result.sharing_score.data_ptr(),
        labels=result.labels.data_ptr(),
        self_expression=None if result.self_expression is None else result.self_expression.data_ptr(),
        report=result.report_bytes.data_ptr(),
    )
    _launch(params, device)
    return result


def _launch(params: SubspaceScoreParams, device: torch.device) -> None:
    path = plugin_library()
    library = bind(load_library(path))
    with torch.cuda.device(device):
        size = library.va_subspace_score_workspace_bytes(ctypes.byref(params))
        workspace = torch.empty(size, dtype=torch.uint8, device=device)
        params.workspace, params.workspace_bytes = workspace.data_ptr(), size
        stream = torch.cuda.current_stream(device).cuda_stream
        error = library.va_subspace_score_launch(ctypes.byref(params), stream)
    if error:
        raise launch_failure(library, path, error)


def _check_device(tokens: Tensor) -> None:
    if tokens.device.type != "cuda":
        raise VaExportError(
            f"tokens are on {tokens.device}, and this function runs CUDA kernels",
            where=_WHERE,
            fix=f"Move them to a GPU, or use {_EAGER}.",
        )


def _fault(tokens: Tensor, settings: ScoreSettings) -> str:
    """Why the kernels do not take these tokens, or ""."""
    if tokens.ndim != 2 or _name(tokens.dtype) not in DTYPE_CODES:
        return f"tokens are {tuple(tokens.shape)} {_name(tokens.dtype)}, expected [N, D] of {', '.join(DTYPE_CODES)}"
    n, dim = tokens.shape
    if not max(2, settings.n_subspaces) <= n <= MAX_TOKENS or not 1 <= dim <= MAX_DIM:
        return f"tokens have shape ({n}, {dim}) for {settings.n_subspaces} subspaces"
    if settings.n_subspaces > MAX_SUBSPACES or settings.pca_rank > min(n, dim, MAX_PCA_RANK):
        return f"n_subspaces = {settings.n_subspaces} and pca_rank = {settings.pca_rank} for tokens ({n}, {dim})"
    return ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
