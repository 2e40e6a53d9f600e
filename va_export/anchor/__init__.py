"""VideoAnchor (arXiv 2509.25151): find the visual tokens that recur across frames, strengthen them in
attention.

    score = subspace_score(visual_tokens)  # Subspace-to-Scaler, NumPy or PyTorch
    key_log_gain, value_gain = gains_from_score(score, visual_mask, length, alpha_k=9.5, alpha_v=2.5)
    output = anchored_attention(query, key, value, key_log_gain, value_gain)  # PyTorch

Names are imported on first use, so that scoring NumPy arrays needs no PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from va_export.anchor.attention import anchored_attention as anchored_attention
    from va_export.anchor.gains import alpha_k_for_target_share as alpha_k_for_target_share
    from va_export.anchor.gains import gains_from_score as gains_from_score
    from va_export.anchor.hugging_face import anchors as anchors
    from va_export.anchor.hugging_face import use_anchored_attention as use_anchored_attention
    from va_export.anchor.scoring import subspace_score as subspace_score
    from va_export.anchor.subspace_details import SubspaceScore as SubspaceScore

_MODULE_OF = {
    "SubspaceScore": "subspace_details",
    "alpha_k_for_target_share": "gains",
    "anchored_attention": "attention",
    "anchors": "hugging_face",
    "gains_from_score": "gains",
    "subspace_score": "scoring",
    "use_anchored_attention": "hugging_face",
}

__all__ = [
    "SubspaceScore",
    "alpha_k_for_target_share",
    "anchored_attention",
    "anchors",
    "gains_from_score",
    "subspace_score",
    "use_anchored_attention",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
