"""The paper's solver as it runs on a GPU: a dense float64 solve an iteration, in PyTorch, as a peer to time.

The original is CuPy; each step here is the same library call on the same device (cuSOLVER, cuBLAS). Few iterations are
run and the rest is extrapolated, for they all cost the same.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from va_export.settings import ScoreSettings


def textbook_seconds(tokens: Tensor, iterations: int, settings: ScoreSettings, timed_iterations: int = 3) -> float:
    """Seconds that `iterations` of the literal ADMM take on the tokens' device, its clustering left out.

    Args:
        tokens: [N, D] or, with PCA, [N, r] projected already.
        iterations: as many as the converged run needs; the one-state form takes the same number.
    """
    step = _TextbookStep(tokens.double().T, settings)
    step()  # allocates, and loads the libraries
    start = _now(tokens.device)
    for _ in range(timed_iterations):
        step()
    return (_now(tokens.device) - start) / timed_iterations * iterations


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class _TextbookStep:
    """One iteration of `va_export.anchor.textbook`, in torch float64; y is [D, N]."""

    def __init__(self, y: Tensor, settings: ScoreSettings) -> None:
        n, self.rho = y.shape[1], settings.rho
        products = y.T @ y
        norms = y.abs().sum(0)
        # μ_e = min_i max_{j≠i} ‖y_j‖₁ is the second largest norm: what is left for the token of the largest.
        largest = norms.topk(min(2, n)).values
        off_diagonal = products.abs().fill_diagonal_(0.0)
        self.lambda_e = settings.alpha_e / float(largest[-1])
        self.lambda_z = settings.alpha_z / float(off_diagonal.amax(1).min())
        self.y, self.eye = y, torch.eye(n, dtype=y.dtype, device=y.device)
        self.system = self.lambda_z * products + self.rho * self.eye + self.rho
        self.c, self.delta_2 = torch.zeros_like(products), torch.zeros_like(products)
        self.e, self.delta_1 = torch.zeros_like(y), torch.zeros(n, 1, dtype=y.dtype, device=y.device)
        self.residual = torch.inf

    def __call__(self) -> None:
        rho, y = self.rho, self.y
        right = self.lambda_z * y.T @ (y - self.e) + rho * (1.0 + self.c) - self.delta_1.T - self.delta_2
        a = torch.linalg.solve(self.system, right)
        self.c = torch.nn.functional.softshrink(a + self.delta_2 / rho, 1.0 / rho).fill_diagonal_(0.0)
        self.e = torch.nn.functional.softshrink(y - y @ a, self.lambda_e / self.lambda_z)
        self.delta_1 = self.delta_1 + rho * (a.sum(0)[:, None] - 1.0)
        self.delta_2 = self.delta_2 + rho * (a - self.c)
        self.residual = float((a - self.c).abs().sum(1).max())  # the original looks at it on the host, too
