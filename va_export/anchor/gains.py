"""From sharing scores to attention gains: γ = 1 + α·s at visual positions, 1 elsewhere.

arXiv 2509.25151, section 3. Each decoder layer in prefill uses γ_K as an offset log γ_K on the logits and γ_V as a
factor on the values. The paper's third factor, γ_Q on the queries' side, adds the constant log γ_Q[i] to the whole
softmax row i and so cancels exactly: it has no parameter here.

NumPy in, NumPy out; torch in, torch out on the same device.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

import array_api_compat
import numpy as np

from va_export.errors import VaExportError
from va_export.settings import GainSettings

if TYPE_CHECKING:
    from torch import Tensor

    Array = TypeVar("Array", np.ndarray[Any, Any], Tensor)

_WHERE = "gains_from_score"
_MOST_ALPHA = 1e4  # as in GainSettings


def gains_from_score(
    sharing_score: Array, visual: Array, length: int, *, alpha_k: float, alpha_v: float
) -> tuple[Array, Array]:
    """The gains of one prompt, for the op AnchoredAttention.

    Args:
        sharing_score: [N], score of each visual token in the prompt's order, in [0, 1].
        visual: where the visual tokens stand in the prompt: a bool mask [S] with N true, or N positions
            (integers).
        length: S, the prompt's length in tokens.
        alpha_k: strength on keys (9.5 for InternVL2-8B, 2.0 for InternVL2-4B; the paper's settings).
        alpha_v: strength on values (2.5 and 3.0).

    Returns:
        (key_log_gain [S], value_gain [S]), float32: log(1 + alpha_k·s) and 1 + alpha_v·s at visual positions,
        0 and 1 elsewhere. A gain of exactly 0 (alpha -1, score 1) is allowed: its logarithm is -inf, which
        removes the key.

    Raises:
        VaExportError: if shapes disagree, positions repeat or lie outside the prompt, a value is not finite,
            or an alpha below -1 makes a gain negative.
    """
    xp = array_api_compat.array_namespace(sharing_score)
    device = array_api_compat.device(sharing_score)
    if sharing_score.ndim != 1:
        raise VaExportError(
            f"sharing_score has shape {tuple(sharing_score.shape)}",
            where=_WHERE,
            fix="pass one score per visual token, [N]",
        )
    position = _positions(visual, sharing_score.shape[0], length)
    score = xp.astype(sharing_score, xp.float64)
    if not bool(xp.all(xp.isfinite(score))):
        raise VaExportError(
            "sharing_score holds NaN or infinity", where=_WHERE, fix="check the visual tokens it came from"
        )
    gains = []
    for name, alpha in (("alpha_k", alpha_k), ("alpha_v", alpha_v)):
        if not math.isfinite(alpha) or bool(xp.any(1.0 + alpha * score < 0)):
            raise VaExportError(
                f"{name} = {alpha} makes a gain 1 + {name}·score negative or infinite",
                where=_WHERE,
                fix=f"use {name} >= -1",
            )
        full = xp.ones(length, dtype=xp.float64, device=device)
        full[xp.asarray(position, device=device)] = 1.0 + alpha * score
        gains.append(full)
    with np.errstate(divide="ignore"):
        key_log_gain = xp.log(gains[0])
    return xp.astype(key_log_gain, xp.float32), xp.astype(gains[1], xp.float32)


def alpha_k_for_target_share(
    sharing_score: Array, plain_share: float | np.ndarray[Any, Any], target_share: float
) -> float:
    """The gain on keys that gives visual tokens a wanted share of attention. Ours, not the paper's.

    Let p be the sum of one softmax row over the visual keys without gains. A gain γ_j multiplies key j's weight before
    the row is normalised, so with gains the sum is p·m / (p·m + 1 − p), where m is the mean of γ over the visual keys,
    weighted by attention. Taken here: within the visual keys, plain attention does not depend on the score, so that
    m = 1 + α_k · mean(score). The α_k returned makes the mean of that share over all rows the target; it grows with
    α_k, so bisection finds it. No forward pass is needed beyond the one that measured p.

    Args:
        sharing_score: [N], in [0, 1].
        plain_share: p, in [0, 1], of one row or of any number (layers, heads, queries), from plain attention weights.
        target_share: the mean share wanted, above 0 and below 1.

    Returns:
        α_k >= 0: 0 where plain attention has the target already (nothing is weakened), or where all scores are 0
        and no gain could change anything.

    Raises:
        VaExportError: values out of range, or a target that no α_k up to 10000 reaches.
    """
    where = "alpha_k_for_target_share"
    rows = np.asarray(plain_share, dtype=np.float64).reshape(-1)
    if rows.size == 0 or not ((rows >= 0) & (rows <= 1)).all():
        raise VaExportError(
            "plain shares of attention must lie in [0, 1], and there must be one",
            where=where,
            fix="pass sums of softmax rows over the visual keys",
        )
    if not 0 < target_share < 1:
        raise VaExportError(
            f"target_share = {target_share} is no share", where=where, fix="set one above 0 and below 1"
        )
    xp = array_api_compat.array_namespace(sharing_score)
    mean_score = float(xp.mean(xp.astype(sharing_score, xp.float64))) if sharing_score.shape[0] else 0.0
    if not 0 <= mean_score <= 1:
        raise VaExportError(
            f"the scores' mean is {mean_score}, not in [0, 1]", where=where, fix="pass what subspace_score returned"
        )

    def share(alpha: float) -> float:
        raised = rows * (1.0 + alpha * mean_score)
        return float((raised / (raised + 1.0 - rows)).mean())

    if mean_score == 0.0 or share(0.0) >= target_share:
        return 0.0
    if share(_MOST_ALPHA) < target_share:
        raise VaExportError(
            f"no alpha_k up to {_MOST_ALPHA:g} raises the visual share from {share(0.0):.3g} to {target_share:.3g}",
            where=where,
            fix=f"lower the target: {share(_MOST_ALPHA):.3g} is the most for these scores",
        )
    low, high = 0.0, _MOST_ALPHA
    while (middle := (low + high) / 2) not in (low, high):  # until no number lies between
        low, high = (middle, high) if share(middle) < target_share else (low, middle)
    return high


def alphas_of_prompt(settings: GainSettings, sharing_score: Array, length: int) -> tuple[float, float]:
    """(alpha_k, alpha_v) for one prompt of `length` tokens with these scores [N]: the settings' own, or alpha_k from
    their target share.

    Raises:
        VaExportError: a target that cannot be reached.
    """
    if settings.target_visual_share == 0.0 or sharing_score.shape[0] == 0:
        return settings.alpha_k, settings.alpha_v
    plain = settings.plain_visual_share or sharing_score.shape[0] / length
    return alpha_k_for_target_share(sharing_score, plain, settings.target_visual_share), settings.alpha_v


def _positions(visual: Any, count: int, length: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Positions of the visual tokens, [N], on the host."""
    where = np.asarray(visual.cpu() if hasattr(visual, "cpu") else visual)
    if where.dtype == np.bool_:
        if where.shape != (length,) or int(where.sum()) != count:
            raise VaExportError(
                f"the visual mask has shape {where.shape} with {int(where.sum())} visual positions;"
                f" there are {count} scores for a prompt of {length}",
                where=_WHERE,
                fix="pass a bool mask over the whole prompt with one true entry per score",
            )
        return np.flatnonzero(where)
    distinct = np.unique(where)
    is_integer = np.issubdtype(where.dtype, np.integer)
    inside = where.size == 0 or (distinct[0] >= 0 and distinct[-1] < length)
    if not is_integer or where.shape != (count,) or distinct.size != count or not inside:
        raise VaExportError(
            f"{where.size} visual positions ({where.dtype}) do not fit {count} scores, prompt of {length}",
            where=_WHERE,
            fix="pass N distinct integer positions from 0 to length - 1, or a bool mask",
        )
    return where.astype(np.int64)
