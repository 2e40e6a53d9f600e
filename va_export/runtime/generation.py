"""An answer, and what it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from va_export.runtime.backends.backend import Float32, Int64
from va_export.runtime.processing import Prepared
from va_export.runtime.score_cache import Scored
from va_export.runtime.stage_clock import StageClock


@dataclass(frozen=True)
class Generation:
    """One answer and what led to it.

    Attributes:
        tokens: (T,) the generated ids; the last is a stop id if one came up.
        logits: (T, vocab) float32, row t is what token t was chosen from, so prefill's last position comes first; None
            unless asked for.
        visual_tokens: (N, hidden_size) as they entered the decoder, with what its first layers add behind them, where
            they do; None without frames.
        sharing_score: (N,) in [0, 1] of the visual tokens that are scored; None without frames or with anchors off.
        labels: (N,) subspace of each of them, with the score.
        timings: milliseconds by stage: vision, score, prefill, decode (all steps), total; where the decoder is in
            shards also what each of them had of prefill and decode, as `prefill/decoder_0`.
        gpu_timings: the same by the GPU's own clock; empty without one.
    """

    tokens: Int64
    logits: Float32 | None
    visual_tokens: Float32 | None
    sharing_score: Float32 | None
    labels: npt.NDArray[np.int64] | None
    timings: dict[str, float] = field(default_factory=dict)
    gpu_timings: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Encoded:
    """A prompt with its visual tokens, their score and its gains."""

    prepared: Prepared
    visual: Float32 | None
    scored: Scored | None
    gains: tuple[Float32, Float32]

    def generation(self, tokens: Sequence[int], logits: Sequence[Float32] | None, clock: StageClock) -> Generation:
        """The answer of these tokens, and the (vocab,) logits that each was chosen from, if they were kept."""
        scored = self.scored
        return Generation(
            tokens=np.array(tokens, np.int64),
            logits=None if logits is None else np.stack(logits),
            visual_tokens=self.visual,
            sharing_score=None if scored is None else scored.sharing_score,
            labels=None if scored is None else scored.labels,
            timings=clock.milliseconds,
            gpu_timings=clock.gpu_milliseconds,
        )
