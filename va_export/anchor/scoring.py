"""Subspace-to-Scaler: from a video's visual tokens to one sharing score a token (arXiv 2509.25151, section 3)."""

from __future__ import annotations

import math
import warnings
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import array_api_compat
import numpy as np
from threadpoolctl import threadpool_limits

from va_export.anchor.iterations_left import OnProgress
from va_export.anchor.projection import project_to_principal_components, scale_to_unit
from va_export.anchor.scorable import are_equal
from va_export.anchor.self_expression import AdmmOptions, SelfExpression, solve_self_expression
from va_export.anchor.sharing import sharing_score
from va_export.anchor.spectral import cluster_subspaces
from va_export.anchor.subspace_details import SubspaceScore
from va_export.anchor.warm_start import SolverState
from va_export.errors import VaExportError
from va_export.settings import ScoreSettings

if TYPE_CHECKING:
    from torch import Tensor

    Tokens = TypeVar("Tokens", np.ndarray[Any, Any], Tensor)

_WHERE = "subspace_score"
_SMALL = 512  # tokens up to which threads of the BLAS cost more than they give: on a busy machine, several times


@overload
def subspace_score(
    tokens: Tokens,
    n_subspaces: int | Literal["auto"] = ...,
    pca_rank: int = ...,
    rho: float = ...,
    alpha_e: float = ...,
    alpha_z: float = ...,
    eps: float = ...,
    max_iter: int = ...,
    dtype: Literal["float32", "float64"] = ...,
    return_details: Literal[False] = ...,
    *,
    warm_start: SubspaceScore | None = ...,
    keep_state: bool = ...,
    on_progress: OnProgress | None = ...,
) -> Tokens: ...


@overload
def subspace_score(
    tokens: Tokens,
    n_subspaces: int | Literal["auto"] = ...,
    pca_rank: int = ...,
    rho: float = ...,
    alpha_e: float = ...,
    alpha_z: float = ...,
    eps: float = ...,
    max_iter: int = ...,
    dtype: Literal["float32", "float64"] = ...,
    *,
    return_details: Literal[True],
    warm_start: SubspaceScore | None = ...,
    keep_state: bool = ...,
    on_progress: OnProgress | None = ...,
) -> SubspaceScore: ...


def subspace_score(
    tokens: Any,
    n_subspaces: int | Literal["auto"] = 24,
    pca_rank: int = 0,
    rho: float = 300.0,
    alpha_e: float = 800.0,
    alpha_z: float = 800.0,
    eps: float = 2e-4,
    max_iter: int = 10000,
    dtype: Literal["float32", "float64"] = "float32",
    return_details: bool = False,
    *,
    warm_start: SubspaceScore | None = None,
    keep_state: bool = False,
    on_progress: OnProgress | None = None,
) -> Any:
    """Score how much each visual token of a video recurs; the defaults are the paper's settings.

    Self-expression runs where the tokens are, PyTorch tensors on their device; only the spectral step (N × N
    eigenvectors) runs on the host. With VA_EXPORT_SCORE_KERNEL=cuda in the environment, CUDA tensors are scored on
    the GPU from end to end, by the TensorRT plugin's kernels (not with "auto", warm_start or keep_state). PyTorch is
    not imported for NumPy arrays. The score does not depend on the tokens' scale, nor on the order of their features.

    Args:
        tokens: [N, D] visual tokens as they enter the language model, NumPy array or torch tensor of any real
            type.
        n_subspaces: K, the number of clusters; "auto", which is not the paper's: as many as an eigengap of the
            affinity shows (`spectral.count_subspaces`).
        pca_rank: project the centred tokens to this many principal components first; 0 does not.
        rho: the ADMM's penalty.
        alpha_e, alpha_z: numerators of λ_e and λ_z.
        eps: stop when the max row sum of |A − C| falls below it.
        max_iter: stop there in any case, with a warning.
        dtype: of the solver and the score: "float32" is within about 1e-5 of "float64".
        return_details: return a `SubspaceScore` instead of the score alone.
        warm_start: details of an earlier call with `keep_state`. For the same tokens and settings but eps and
            max_iter, the solver goes on where that call stopped, and ends where one call would have. For a clip
            that grew, the earlier tokens first, see below.
        keep_state: keep in the details what a `warm_start` needs, another N × N array.
        on_progress: called about every second of the solver, and at its end, with the iterations taken and those that
            are expected in all, None where nothing is known yet (`iterations_left.py`); the CUDA kernels tell nothing.

    A longer clip, warm, aims at the optimum and no longer at the paper's iterates on the way to it, for no other
    start can give those (`warm_start.py` says why). On the clips of tests/anchor/test_warm_start.py, from 8 to 12
    to 16 frames, it takes 66 to 143 iterations for 315 to 397 from zeros (with PCA 308 to 354 for 792 to 1034), and
    ends nearer to the optimum: 0.03 to 0.12 in C for 0.11 to 0.21 (0.66 to 0.68 for 0.79 to 0.80). At the paper's eps
    the two answers differ by as much as that, and so scores do not compare between warm and cold runs. At eps = 1e-7
    C is one, and on the clip of noise 0.1 so is the score, to 2e-3 (1057 iterations for 1971); where tokens lie
    between subspaces (noise 0.2), some change theirs, and their score with it.

    Returns:
        sharing score [N], in [0, 1], of the tokens' kind and on their device. Tokens that are all equal (to the
        rounding of their type) score 0.

    Raises:
        VaExportError: if the tokens are not a finite real [N, D] with N >= max(2, n_subspaces), a setting is
            out of range, a token (after PCA) is zero or orthogonal to every other to the precision of `dtype`, for
            which the paper's λ is infinite, the solver ends with a residual that leaves no result (`scorable.py`
            has both bounds and their reasons), or `warm_start` has no state, more tokens, or arrays of another kind.

    Warns:
        RuntimeWarning: if max_iter came before convergence, with a residual below that; the score is that of the
            last iterate.
    """
    options = AdmmOptions(rho, alpha_e, alpha_z, eps, max_iter)
    count = None if isinstance(n_subspaces, str) and n_subspaces == "auto" else n_subspaces
    _check_settings(options, count, pca_rank, dtype)
    _check_tokens(tokens, count or 1, pca_rank)
    start = _state_of(warm_start)
    with ExitStack() as stack:
        if array_api_compat.is_torch_array(tokens):
            import torch

            # Inside a caller's autocast region, products would drop to half precision.
            stack.enter_context(torch.autocast(tokens.device.type, enabled=False))
            stack.enter_context(torch.no_grad())
        if tokens.shape[0] <= _SMALL:
            stack.enter_context(threadpool_limits(limits=1, user_api="blas"))
        details = _score(tokens, options, count, pca_rank, dtype, start, keep_state, on_progress)
    if not details.converged:
        warnings.warn(
            f"subspace_score stopped after {details.iterations} iterations with residual {details.residual:.3g},"
            f" above eps {eps:.3g}: raise max_iter or eps",
            RuntimeWarning,
            stacklevel=2,
        )
    return details if return_details else details.sharing_score


def _score(
    tokens: Any,
    options: AdmmOptions,
    n_subspaces: int | None,
    pca_rank: int,
    dtype: str,
    start: SolverState | None,
    keep_state: bool,
    on_progress: OnProgress | None,
) -> SubspaceScore:
    is_plain = n_subspaces is not None and start is None and not keep_state  # what the kernels compute
    if is_plain and array_api_compat.is_torch_array(tokens) and tokens.device.type == "cuda":
        from va_export.anchor.cuda_scoring import score_on_cuda

        assert n_subspaces is not None
        by_kernels = score_on_cuda(tokens, ScoreSettings(n_subspaces, pca_rank, **vars(options)), dtype)
        if by_kernels is not None:
            return by_kernels
    xp = array_api_compat.array_namespace(tokens)
    solver_dtype = getattr(xp, dtype)
    exact = xp.astype(tokens, xp.float64)
    scaled, scale = scale_to_unit(exact)
    if are_equal(scaled, "float64" if xp.isdtype(tokens.dtype, ("integral", xp.float64)) else "float32"):
        return _score_of_equal_tokens(exact, solver_dtype)
    if pca_rank:
        scaled = project_to_principal_components(scaled, pca_rank)
    solution: SelfExpression = solve_self_expression(
        xp.astype(scaled, solver_dtype), options, start=start, keep_state=keep_state, on_progress=on_progress
    )
    expression = solution.matrix
    on_host = np.asarray(expression if isinstance(expression, np.ndarray) else expression.cpu())
    labels = cluster_subspaces(on_host, n_subspaces)
    score = sharing_score(on_host.sum(axis=1, dtype=np.float64), labels)
    device = array_api_compat.device(tokens)
    return SubspaceScore(
        sharing_score=xp.asarray(score, dtype=solver_dtype, device=device),
        self_expression=expression,
        labels=xp.asarray(labels, device=device),
        iterations=solution.iterations,
        lambda_e=solution.lambda_e / scale,
        lambda_z=solution.lambda_z / scale / scale,
        converged=solution.converged,
        residual=solution.residual,
        state=solution.state,
    )


def _score_of_equal_tokens(tokens: Any, dtype: Any) -> SubspaceScore:
    """No token recurs more than another: all score 0, which leaves attention plain."""
    xp = array_api_compat.array_namespace(tokens)
    n, device = tokens.shape[0], array_api_compat.device(tokens)
    return SubspaceScore(
        sharing_score=xp.zeros(n, dtype=dtype, device=device),
        self_expression=xp.zeros((n, n), dtype=dtype, device=device),
        labels=xp.zeros(n, dtype=xp.int64, device=device),
        iterations=0,
        lambda_e=math.nan,
        lambda_z=math.nan,
        converged=True,
        residual=0.0,
    )


def _state_of(warm_start: SubspaceScore | None) -> SolverState | None:
    """None also for tokens that were all equal, where nothing was solved."""
    if warm_start is None:
        return None
    if not isinstance(warm_start, SubspaceScore) or (warm_start.state is None and warm_start.iterations > 0):
        raise VaExportError(
            "warm_start holds no state of the solver",
            where=_WHERE,
            fix="pass what subspace_score(..., return_details=True, keep_state=True) returned",
        )
    return warm_start.state


def _check_settings(options: AdmmOptions, n_subspaces: int | None, pca_rank: int, dtype: str) -> None:
    for name in ("rho", "alpha_e", "alpha_z"):
        setting = getattr(options, name)
        if not 1e-20 <= setting <= 1e20:  # beyond, float32 overflows
            raise VaExportError(
                f"{name} = {setting} is out of range",
                where=_WHERE,
                fix=f"set 1e-20 <= {name} <= 1e20 (the paper: hundreds)",
            )
    if not (math.isfinite(options.eps) and options.eps > 0):
        raise VaExportError(f"eps = {options.eps} is not a positive number", where=_WHERE, fix="set eps > 0")
    for name, count, least in (
        ("max_iter", options.max_iter, 1),
        ("n_subspaces", 1 if n_subspaces is None else n_subspaces, 1),
        ("pca_rank", pca_rank, 0),
    ):
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < least:
            raise VaExportError(
                f"{name} = {count} is not an integer of at least {least}", where=_WHERE, fix=f"set {name} >= {least}"
            )
    if dtype not in ("float32", "float64"):
        raise VaExportError(f"dtype = {dtype!r} is not supported", where=_WHERE, fix='use "float32" or "float64"')


def _check_tokens(tokens: Any, n_subspaces: int, pca_rank: int) -> None:
    if not isinstance(tokens, np.ndarray) and not array_api_compat.is_torch_array(tokens):
        raise VaExportError(
            f"tokens are a {type(tokens).__name__}", where=_WHERE, fix="pass a NumPy array or a torch tensor"
        )
    xp = array_api_compat.array_namespace(tokens)
    shape = tuple(tokens.shape)
    if tokens.ndim != 2 or 0 in shape:
        raise VaExportError(f"tokens have shape {shape}", where=_WHERE, fix="pass [N, D]: one row per visual token")
    if not xp.isdtype(tokens.dtype, ("real floating", "integral")):
        raise VaExportError(f"tokens are of type {tokens.dtype}", where=_WHERE, fix="pass real numbers")
    if shape[0] < max(2, n_subspaces):
        raise VaExportError(
            f"{shape[0]} tokens cannot form {n_subspaces} subspaces",
            where=_WHERE,
            fix="pass at least two tokens, and no fewer tokens than n_subspaces",
        )
    if pca_rank > min(shape):
        raise VaExportError(
            f"pca_rank = {pca_rank} is more than {shape[0]} tokens of {shape[1]} features have",
            where=_WHERE,
            fix=f"set pca_rank <= {min(shape)}, or 0 for no projection",
        )
    if not bool(xp.all(xp.isfinite(tokens))):
        raise VaExportError("tokens hold NaN or infinity", where=_WHERE, fix="check the vision tower's output")
