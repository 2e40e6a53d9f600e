#!/usr/bin/env python3
"""Times the subspace score on the CPU against the paper's literal solver, in the same run.

    python scripts/benchmark_score.py [tokens ...]          512 1024 2048 by default

Each line is one case: the whole function (projection, solver, clustering, score), median of alternating runs. The
textbook's iterations are counted from ours (they are the same) and its time is extrapolated from a few of them; its
iterates after those few are compared with ours. Tokens are synthetic: patches of eight-frame clips that drift on
planes of their own.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
from sklearn.cluster import spectral_clustering
from sklearn.decomposition import PCA

from va_export.anchor import subspace_score
from va_export.anchor.textbook import textbook_self_expression

FRAMES, DIM, SUBSPACES, REPEATS = 8, 1024, 24, 3
FEW = 6  # iterations of the textbook's that are timed; two more or fewer give its time before the first

Array = np.ndarray[Any, Any]


def video_tokens(n: int) -> Array:
    """[n, DIM] float32: patches of 12 kinds, each on its own plane of rank 4, moving a little from frame to frame."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 12, n // FRAMES)
    planes, centres = rng.standard_normal((12, 4, DIM)) / 2, rng.standard_normal((12, DIM))
    place = rng.standard_normal((n // FRAMES, 4))
    frames = []
    for _ in range(FRAMES):
        place += 0.1 * rng.standard_normal(place.shape)
        frame = np.einsum("pr,prd->pd", place, planes[kind]) + centres[kind]
        frames.append(frame + 0.05 * rng.standard_normal(frame.shape))
    return np.concatenate(frames).astype(np.float32)


def seconds(function: Any, *arguments: Any, **options: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function(*arguments, **options)
    return time.perf_counter() - start, result


def textbook_seconds(tokens: Array, rank: int, iterations: int, ours: Array) -> float:
    """Of the literal form: scikit-learn's PCA, a dense solve an iteration, scikit-learn's clustering."""
    exact = tokens.astype(np.float64)
    projection, projected = seconds(PCA(rank, svd_solver="full").fit_transform, exact) if rank else (0.0, exact)
    setup_and_two, _ = seconds(textbook_self_expression, projected, max_iter=2)
    more, few = seconds(textbook_self_expression, projected, max_iter=2 + FEW)
    an_iteration = (more - setup_and_two) / FEW
    same = subspace_score(tokens, SUBSPACES, rank, max_iter=2 + FEW, dtype="float64", return_details=True)
    difference = np.abs(same.self_expression - few.self_expression).max()
    assert difference < 1e-6, f"C differs by {difference}"
    size = np.abs(ours.astype(np.float64))
    clustering, _ = seconds(spectral_clustering, size + size.T, n_clusters=SUBSPACES, assign_labels="discretize")
    return projection + setup_and_two + (iterations - 2) * an_iteration + clustering


def measure(n: int, rank: int, dtype: Any) -> None:
    """Print one line."""
    tokens = video_tokens(n)
    subspace_score(tokens[:64], SUBSPACES, dtype=dtype)  # loads the libraries
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours, textbook = [], []
    peak = 0
    for _ in range(REPEATS):
        took, details = seconds(subspace_score, tokens, SUBSPACES, rank, dtype=dtype, return_details=True)
        ours.append(took)
        peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        textbook.append(textbook_seconds(tokens, rank, details.iterations, details.self_expression))
    mine, theirs = statistics.median(ours), statistics.median(textbook)
    print(
        f"{n:6d} {rank or 'none':>5} {dtype:>8} {details.iterations:6d} {mine:9.3f} [{min(ours):.3f}, {max(ours):.3f}]"
        f" {theirs:9.1f} {theirs / mine:7.1f} {peak / 1024:9.0f}",
        flush=True,
    )


def main() -> None:
    """A process for each case: peak memory never falls."""
    if sys.argv[1:2] == ["--case"]:
        measure(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
        return
    print(
        "tokens   PCA    dtype  iter.    ours s [min, max]  textbook s (extrapolated)  ratio  our peak MiB", flush=True
    )
    for n in [int(argument) for argument in sys.argv[1:]] or [512, 1024, 2048]:
        for rank in (64, 0):
            for dtype in ("float32", "float64"):
                subprocess.run([sys.executable, __file__, "--case", str(n), str(rank), dtype], check=True)


if __name__ == "__main__":
    import warnings

    warnings.filterwarnings("ignore", message="subspace_score stopped|Graph is not fully connected")
    main()
