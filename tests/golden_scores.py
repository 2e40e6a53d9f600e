"""The original implementation's results for Subspace-to-Scaler, read from tests/data/golden (see its README)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.decomposition import PCA

GOLDEN = Path(__file__).parent / "data" / "golden"
SSC_CASES = sorted(path.stem for path in (GOLDEN / "ssc").glob("*.npz"))
TINY = "internvl2_tiny"


@dataclass(frozen=True)
class GoldenScore:
    tokens: np.ndarray[Any, Any]  # [N, D] float32
    projected: np.ndarray[Any, Any]  # [N, r] float64: scikit-learn's PCA of the tokens, or the tokens
    pca_rank: int
    n_subspaces: int
    self_expression: np.ndarray[Any, Any]  # [N, N], stored in float32
    iterations: int
    lambda_e: float
    lambda_z: float
    labels: np.ndarray[Any, Any]
    row_sum: np.ndarray[Any, Any]
    sharing_score: np.ndarray[Any, Any]


def load_golden_score(name: str) -> GoldenScore:
    is_model = name == TINY
    path = GOLDEN / TINY / "golden.npz" if is_model else GOLDEN / "ssc" / f"{name}.npz"
    with np.load(path) as data:
        tokens = data["visual_tokens" if is_model else "tokens"]
        rank = 0 if is_model else int(data["pca_rank"])
        exact = tokens.astype(np.float64)
        return GoldenScore(
            tokens=tokens,
            projected=PCA(rank, svd_solver="full").fit_transform(exact) if rank else exact,
            pca_rank=rank,
            n_subspaces=int(data["n_subspaces"]),
            self_expression=data["self_expression"],
            iterations=int(data["admm_iterations"]),
            lambda_e=float(data["lambda_e"]),
            lambda_z=float(data["lambda_z"]),
            labels=data["labels"],
            row_sum=data["row_sum"],
            sharing_score=data["sharing_score"],
        )


def planted_tokens(
    n_per_subspace: int, n_subspaces: int, dim: int, *, rank: int = 3, noise: float = 0.0, seed: int = 0
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Shuffled points of random `rank`-dimensional subspaces: (tokens [N, dim] float64, true labels [N])."""
    rng = np.random.default_rng(seed)
    tokens = np.concatenate(
        [
            rng.standard_normal((n_per_subspace, rank)) @ np.linalg.qr(rng.standard_normal((dim, rank)))[0].T
            for _ in range(n_subspaces)
        ]
    )
    tokens += noise * rng.standard_normal(tokens.shape)
    order = rng.permutation(len(tokens))
    return tokens[order], np.repeat(np.arange(n_subspaces), n_per_subspace)[order]
