"""What happens to tokens before self-expression: a common scale, and optionally PCA."""

from __future__ import annotations

import math

import array_api_compat
import numpy as np
from scipy.linalg import eigh

from va_export.anchor.self_expression import Array


def scale_to_unit(tokens: Array) -> tuple[Array, float]:
    """Divide tokens [N, D] by the power of two that brings the largest entry into [1, 2).

    Self-expression does not depend on the tokens' scale: with sY for Y, λ_e becomes λ_e/s, λ_z becomes λ_z/s²
    and E becomes sE, and C stays. A power of two changes no digit, so this only keeps products within
    float32's range.

    Returns:
        (tokens / scale, scale).
    """
    xp = array_api_compat.array_namespace(tokens)
    exponent = math.frexp(float(xp.max(xp.abs(tokens))))[1] - 1
    half = exponent // 2  # 2^-1074 has no reciprocal in float64: scale in two steps
    return tokens * 2.0**-half * 2.0 ** (half - exponent), math.ldexp(1.0, exponent)


def project_to_principal_components(tokens: Array, rank: int) -> Array:
    """Scores of centred tokens [N, D], float64, on their first `rank` principal components: [N, rank].

    The same as scikit-learn's PCA with its full solver, up to the components' signs, on which self-expression
    does not depend; by way of the smaller Gram matrix, which leaves small components their digits to 1e-16 of the
    largest's square.
    """
    xp = array_api_compat.array_namespace(tokens)
    centred = tokens - xp.mean(tokens, axis=0)
    n, dim = tokens.shape
    if dim <= n:
        _, directions = leading_eigenpairs(centred.T @ centred, rank)
        return centred @ directions
    spectrum, scores = leading_eigenpairs(centred @ centred.T, rank)
    return scores * xp.sqrt(xp.clip(spectrum, min=0.0))


def leading_eigenpairs(gram: Array, count: int) -> tuple[Array, Array]:
    """The largest eigenvalues [count], descending, of a symmetric matrix [M, M] and their vectors [M, count]."""
    xp = array_api_compat.array_namespace(gram)
    if isinstance(gram, np.ndarray):
        m = gram.shape[0]
        values, vectors = eigh(gram, subset_by_index=[m - count, m - 1], overwrite_a=True, check_finite=False)
    else:
        values, vectors = xp.linalg.eigh(gram)
    return xp.flip(values[-count:], axis=0), xp.flip(vectors[:, -count:], axis=1)
