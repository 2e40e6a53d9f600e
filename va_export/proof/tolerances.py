"""How far a bundle may be from its reference: every number with the roundings that it follows from."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from va_export.proof.documents import Tolerance

Array = npt.NDArray[Any]

# Unit roundoff: half the distance from 1 to the next number (IEEE 754; bfloat16 keeps 8 bits).
_ROUNDOFF = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}
# Roundings on the way through one transformer layer: two norms, seven matrix products and their sums, rotary, softmax,
# gating, two residual sums, each of an input and an output: about 24.
_ROUNDINGS_PER_LAYER = 24
# In float32 the sums of matrix products round too; in lower precision they are kept in float32, and do not count. A
# kernel adds the K products of a result one after another (the lanes of its vectors are other results), in panels of up
# to 384 whose sums it adds then. A step rounds what has been added up so far, on the average half of the end's square,
# by a relative error of variance 0.18 u² (u²/3 over mantissas of 1 to 2): 0.09 u² a term. So it comes out: products of
# 64, 256, 1176 and 4096 Gaussian terms have 5.9, 23, 36 and 36 u² in PyTorch with AVX-512 (6.2, 10, 11, 14 without, and
# in ONNX Runtime 5.9, 12, 13, 15), against 5.8, 23, 35 and 36 counted here. A layer has six products over its width and
# one over its feed-forward width. It matters: Hugging Face's own float32 tower of a toy of three blocks is up to 8.4e-6
# of the root mean square from float64, where 24 roundings a layer alone would explain 5.1e-6.
_PANEL, _STEP = 384, 0.18 / 2
# The largest of 10⁶ Gaussian errors is 5 σ; twice that leaves room for accumulation order and a wider tail.
_SPREAD = 10.0
# cos φ of two vectors whose difference has relative length e is 1 − e²/2. What is asked for is what the product
# promises (0.999 in float16), tighter in float32, and bfloat16's eight times coarser steps.
_COSINE = {"fp32": 1 - 1e-6, "fp16": 0.999, "bf16": 0.99}
# The score is compared on the reference's visual tokens: the host solver's float32 against float64. Its iteration
# stops at a residual of eps = 2e-4, which after summing and min-max scaling is 2e-3 at the most on the official
# implementation's data.
SCORE_ATOL, SCORE_COSINE = 2e-3, 0.999
# The score component computes in float32 what the host's solver leaves to float64 (Gram matrices, eigenvectors). What
# it promises is ten times the above; measured are 2e-5 (va_export/ops/subspace_score.py).
SCORE_GRAPH_ATOL = 2e-2


def count_roundings(precision: str, n_layers: int, hidden_size: int, intermediate_size: int) -> float:
    """Roundings on the way through so many transformer layers: the variance of their sum in u²."""
    in_sums = 6 * _in_sum(hidden_size) + _in_sum(intermediate_size) if precision == "fp32" else 0.0
    return n_layers * (_ROUNDINGS_PER_LAYER + in_sums)


def _in_sum(terms: int) -> float:
    """Variance, in u² of the result, of a float32 sum of so many products."""
    return _STEP * (min(terms, _PANEL) + terms // _PANEL)


def tolerance_for(
    precision: str, roundings: float, expected: Array, atol: float | None, rtol: float | None, copies: int = 1
) -> Tolerance:
    """What so many roundings explain: independent ones add as their root, each of relative size u, and the largest of
    many is `_SPREAD` times the usual one.

    Args:
        roundings: of `count_roundings`.
        copies: how often a frame of the prompt occurs. Copies of a frame carry the same rounding errors into the
            decoder. In attention's sums over N keys they add straight where independent ones add as their root, so an
            average keeps √copies times the error (measured on eight equal frames: 2.6 times, for √8 = 2.8).
    """
    relative = _SPREAD * _ROUNDOFF[precision] * math.sqrt(roundings * copies)
    scale = float(np.sqrt(np.mean(expected.astype(np.float64) ** 2)))
    return Tolerance(
        atol=relative * scale if atol is None else atol,
        rtol=relative if rtol is None else rtol,
        cosine=_COSINE[precision],
    )


def most_copies(frames: Array) -> int:
    """How often the most frequent of some frames (F, …) occurs; equal to the last bit."""
    _, counts = np.unique(frames.reshape(len(frames), -1), axis=0, return_counts=True)
    return int(counts.max())
