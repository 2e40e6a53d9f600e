"""SubspaceScore's cases on a GPU: tokens like a video's, and the paper's literal solver as the peer."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec.structs import asdict

from va_export.settings import ScoreSettings

if TYPE_CHECKING:
    from torch import Tensor

TOKENS_PER_FRAME = 256
TEXTBOOK_ITERATIONS = 4  # that are timed; the rest is extrapolated


@dataclass(frozen=True)
class ScoreCase:
    """Sizes of one video; settings beside these are the paper's."""

    frames: int
    dim: int
    pca_rank: int
    tokens_per_frame: int = TOKENS_PER_FRAME
    dtype: str = "float16"
    n_subspaces: int = 24

    @property
    def tokens(self) -> int:
        """How many there are."""
        return self.frames * self.tokens_per_frame

    @property
    def settings(self) -> ScoreSettings:
        """The paper's, with this rank."""
        return ScoreSettings(n_subspaces=self.n_subspaces, pca_rank=self.pca_rank)

    def __str__(self) -> str:
        return f"{self.tokens} tokens of {self.dim}, PCA {self.pca_rank or 'none'}"


def video_tokens(case: ScoreCase, device: str, seed: int = 0) -> Tensor:
    """[tokens, dim] in the case's dtype: patches of 12 kinds, each on its own plane of rank 4, that move a little from
    frame to frame."""
    import torch

    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    kind = torch.randint(0, 12, (case.tokens_per_frame,), generator=random)
    planes, centres = normal(12, 4, case.dim) / 2, normal(12, case.dim)
    place = normal(case.tokens_per_frame, 4)
    frames = []
    for _ in range(case.frames):
        place = place + 0.1 * normal(*place.shape)
        clean = torch.einsum("pr,prd->pd", place, planes[kind]) + centres[kind]
        frames.append(clean + 0.05 * normal(case.tokens_per_frame, case.dim))
    return torch.cat(frames).to(getattr(torch, case.dtype)).to(device)


def eager_details(tokens: Tensor, settings: ScoreSettings, dtype: Any) -> Any:
    """`subspace_score` without the kernels, whatever the environment says."""
    from va_export.anchor import subspace_score
    from va_export.evidence.workplace import with_variable
    from va_export.native.subspace_score import KERNEL_VARIABLE

    with with_variable(KERNEL_VARIABLE, None):
        return subspace_score(tokens, **asdict(settings), dtype=dtype, return_details=True)


def textbook_seconds(tokens: Tensor, settings: ScoreSettings, iterations: int) -> float:
    """What the paper's form takes in float64 on the tokens' device: self-expression with one N × N solve an iteration
    (arXiv 2509.25151, appendix; factored once, which flatters it), timed for a few iterations and extrapolated to
    `iterations`. PCA, clustering and score are left out, which flatters it too."""
    import torch

    from va_export.anchor.projection import project_to_principal_components, scale_to_unit
    from va_export.anchor.self_expression import penalty_weights

    exact, _ = scale_to_unit(tokens.double())
    projected = project_to_principal_components(exact, settings.pca_rank) if settings.pca_rank else exact
    lambda_e, lambda_z = penalty_weights(projected, settings.alpha_e, settings.alpha_z)
    y, rho, n = projected.T, settings.rho, tokens.shape[0]

    def wait() -> float:
        if tokens.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    start = wait()
    ones, identity = torch.ones_like(y[:1]), torch.eye(n, dtype=y.dtype, device=y.device)
    system = torch.linalg.cholesky(lambda_z * y.T @ y + rho * identity + rho * ones.T @ ones)
    a, c = torch.zeros_like(system), torch.zeros_like(system)
    delta_2, delta_1, e = torch.zeros_like(system), torch.zeros_like(ones), torch.zeros_like(y)
    times = [wait() - start]
    for _ in range(TEXTBOOK_ITERATIONS + 1):
        start = wait()
        right = lambda_z * y.T @ (y - e) + rho * (1.0 + c) - delta_1 - delta_2
        a = torch.cholesky_solve(right, system)
        c = torch.nn.functional.softshrink(a + delta_2 / rho, 1.0 / rho)
        c.fill_diagonal_(0.0)
        e = torch.nn.functional.softshrink(y - y @ a, lambda_e / lambda_z)
        delta_1 = delta_1 + rho * (a.sum(dim=0, keepdim=True) - 1.0)
        delta_2 = delta_2 + rho * (a - c)
        float((a - c).abs().sum(dim=1).max())
        times.append(wait() - start)
    each = sorted(times[2:])[len(times[2:]) // 2]  # the first iteration loads what the others use
    return times[0] + each * iterations
