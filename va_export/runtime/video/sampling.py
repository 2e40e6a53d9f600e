"""Which frames of a clip are taken: rules by name.

A rule sees the clip as `edges`, [F + 1] seconds that do not descend: frame i is on the screen from edges[i] to
edges[i + 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from va_export.errors import VaExportError

Edges = npt.NDArray[np.float64]
_FPS = "fps="
_HIGHEST_RATE = 1e6
# Moments are moved by what Matroska rounds times to, so that rounding does not decide between two frames.
_NUDGE = 1e-3


def segment_midpoints(edges: Edges, n_frames: int) -> list[int]:
    """About the middle of each of `n_frames` equal segments (`get_index` in OpenGVLab's evaluation code).

    The last frame's index, not the count, is divided, and `round` goes to even; a short video may repeat a frame.
    """
    segment = (len(edges) - 2) / n_frames
    return [int(segment / 2 + float(np.round(segment * i))) for i in range(n_frames)]


def uniform_index(edges: Edges, n_frames: int) -> list[int]:
    """From the first frame to the last in equal steps of the index, rounded (qwen-vl-utils); one frame: the first."""
    return [int(index) for index in np.round(np.linspace(0, len(edges) - 2, n_frames))]


def uniform_index_floor(edges: Edges, n_frames: int) -> list[int]:
    """As `uniform_index`, but cut off and not rounded: NumPy's `linspace` of whole numbers (LMMs-Eval)."""
    return [int(index) for index in np.linspace(0, len(edges) - 2, n_frames)]


def uniform_time(edges: Edges, n_frames: int) -> list[int]:
    """What is on the screen in the middle of each of `n_frames` equal spans of time.

    Unlike the rules by index it does not lean towards the busy parts of a clip of variable frame rate. A frame that
    stays on the screen for long is repeated.
    """
    spans = (np.arange(n_frames) + 0.5) / n_frames
    return _shown_at(edges, edges[0] + spans * (edges[-1] - edges[0]))


SAMPLERS: Mapping[str, Callable[[Edges, int], list[int]]] = {
    "segment-midpoint": segment_midpoints,
    "uniform-index": uniform_index,
    "uniform-index-floor": uniform_index_floor,
    "uniform-time": uniform_time,
}


def check_sampling(rule: str, where: str = "sampling") -> str:
    """The rule's name: a key of `SAMPLERS`, or "fps=" and a number above 0 (at most a million).

    Raises:
        VaExportError: another one.
    """
    if rule not in SAMPLERS and _frame_rate(rule) is None:
        raise VaExportError(
            f"unknown sampling {rule!r}", where=where, fix=f"use one of: {', '.join(SAMPLERS)}, fps=2 (any rate)"
        )
    return rule


def is_by_rate(rule: str) -> bool:
    """Whether the clip's length decides how many frames the rule takes (fps=…)."""
    return _frame_rate(rule) is not None


def sample_frames(rule: str, frame_count: int, n_frames: int, edges: Edges | None = None) -> list[int]:
    """Indices, not descending, of frames out of `frame_count` by the named rule.

    Args:
        n_frames: how many; under "fps=…", which takes what is on the screen at 0, 1/fps, 2/fps, … seconds and no frame
            twice, the most: if there are more, it takes `n_frames` uniformly in time.
        edges: [frame_count + 1] seconds; None: all frames last equally long, one second each.

    Raises:
        VaExportError: an unknown rule, fewer frames than asked for, or none are asked for.
    """
    check_sampling(rule)
    if n_frames < 1:
        raise VaExportError(f"{n_frames} frames asked for", where="frames", fix="ask for at least one frame")
    edges = np.arange(frame_count + 1, dtype=np.float64) if edges is None else edges
    rate = _frame_rate(rule)
    if rate is not None and frame_count:
        # A frame is taken if one of the moments k / rate falls between its edges.
        moments_before = np.ceil((edges - edges[0] - _NUDGE) * rate)
        indices = [int(index) for index in np.flatnonzero(np.diff(moments_before))] or [0]
        return indices if len(indices) <= n_frames else uniform_time(edges, n_frames)
    if frame_count < n_frames or not frame_count:
        raise VaExportError(
            f"the video has {frame_count} frames, {n_frames} are asked for",
            where="video",
            fix="use a longer video, or ask for fewer frames (--frames)",
        )
    return SAMPLERS[rule](edges, n_frames)


def _frame_rate(rule: str) -> float | None:
    """Of "fps=2": 2.0; None of another rule, or where the number is none."""
    try:
        rate = float(rule.removeprefix(_FPS)) if rule.startswith(_FPS) else 0.0
    except ValueError:
        return None
    return rate if 0 < rate <= _HIGHEST_RATE else None


def _shown_at(edges: Edges, moments: Edges) -> list[int]:
    """Index of the frame on the screen at each moment, [M] → M."""
    indices = np.searchsorted(edges, moments + _NUDGE, side="right") - 1
    return [int(index) for index in np.clip(indices, 0, len(edges) - 2)]
