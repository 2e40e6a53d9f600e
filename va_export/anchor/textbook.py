"""Subspace-to-Scaler's self-expression exactly as the paper writes it, in float64 NumPy: slow, literal, for
comparison.

    min ‖C‖₁ + λ_e ‖E‖₁ + λ_z/2 ‖Y − YA − E‖²   s.t.  Aᵀ1 = 1,  A = C − diag(C)

solved by ADMM (arXiv 2509.25151, appendix; after Elhamifar & Vidal, "Sparse Subspace Clustering", 2013).
`va_export.anchor.self_expression` computes the same iterates from one N × N state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve

Matrix = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class TextbookSolution:
    """C [N, N] (column j expresses token j), and how the solver ended."""

    self_expression: Matrix
    iterations: int
    lambda_e: float
    lambda_z: float
    residual: float


def soft_threshold(x: Matrix, threshold: float) -> Matrix:
    """sign(x) · max(|x| − threshold, 0)."""
    return np.sign(x) * np.maximum(np.abs(x) - threshold, 0.0)


def textbook_lambdas(y: Matrix, alpha_e: float, alpha_z: float) -> tuple[float, float]:
    """λ_e = α_e / min_i max_{j≠i} ‖y_j‖₁ and λ_z = α_z / min_i max_{j≠i} |y_iᵀ y_j|, over the columns of y [D, N]."""
    n = y.shape[1]
    norms = np.tile(np.abs(y).sum(axis=0), (n, 1))
    products = np.abs(y.T @ y)
    np.fill_diagonal(norms, 0.0)
    np.fill_diagonal(products, 0.0)
    return alpha_e / norms.max(axis=1).min(), alpha_z / products.max(axis=1).min()


def textbook_self_expression(
    tokens: Matrix,
    *,
    rho: float = 300.0,
    alpha_e: float = 800.0,
    alpha_z: float = 800.0,
    eps: float = 2e-4,
    max_iter: int = 10000,
) -> TextbookSolution:
    """Self-expression of tokens [N, D], which are projected already if they are to be.

    The system matrix is constant, so it is factored once (Cholesky) and solved in every iteration.
    """
    y = np.asarray(tokens, dtype=np.float64).T
    n = y.shape[1]
    ones = np.ones((n, 1))
    lambda_e, lambda_z = textbook_lambdas(y, alpha_e, alpha_z)

    system = cho_factor(lambda_z * y.T @ y + rho * np.eye(n) + rho * ones @ ones.T)
    c = np.zeros((n, n))
    e = np.zeros_like(y)
    delta_1 = np.zeros((n, 1))
    delta_2 = np.zeros((n, n))
    residual = np.inf
    iteration = 0
    while residual >= eps and iteration < max_iter:
        iteration += 1
        right = lambda_z * y.T @ (y - e) + rho * (ones @ ones.T + c) - ones @ delta_1.T - delta_2
        a = cho_solve(system, right)
        c = soft_threshold(a + delta_2 / rho, 1.0 / rho)
        np.fill_diagonal(c, 0.0)
        e = soft_threshold(y - y @ a, lambda_e / lambda_z)
        delta_1 = delta_1 + rho * (a.T @ ones - ones)
        delta_2 = delta_2 + rho * (a - c)
        residual = float(np.abs(a - c).sum(axis=1).max())
    return TextbookSolution(c, iteration, lambda_e, lambda_z, residual)
