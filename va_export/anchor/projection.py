"""What happens to tokens before self-expression: a common scale, and optionally PCA."""

from __future__ import annotations

import math

import array_api_compat

from va_export.anchor.self_expression import Array, orthonormal_columns


def scale_to_unit(tokens: Array) -> tuple[Array, float]:
    """Divide tokens [N, D] (not all zero) by the power of two that brings the largest entry into [1, 2).

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
    does not depend.
    """
    xp = array_api_compat.array_namespace(tokens)
    centred = tokens - xp.mean(tokens, axis=0)
    directions, _ = orthonormal_columns(centred.T)  # eigenvalues ascend
    return centred @ xp.flip(directions[:, -rank:], axis=1)
