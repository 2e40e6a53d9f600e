"""How one prompt is anchored: what a caller asks for, and the gains that follow from it and from the score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from va_export.anchor.gains import alphas_of_prompt, gains_from_score
from va_export.errors import VaExportError
from va_export.runtime import arguments
from va_export.runtime.processing import Prepared
from va_export.runtime.score_cache import Scored
from va_export.settings import GainSettings

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Anchoring:
    """What is asked for.

    Attributes:
        enabled: False leaves VideoAnchor out.
        alpha_k, alpha_v: gains; None: those of the bundle.
        key_log_gain, value_gain: (S,) gains of every prompt position, instead of the scored ones.
    """

    enabled: bool = True
    alpha_k: float | None = None
    alpha_v: float | None = None
    key_log_gain: npt.ArrayLike | None = None
    value_gain: npt.ArrayLike | None = None

    def __post_init__(self) -> None:
        given = (self.alpha_k, self.alpha_v, self.key_log_gain, self.value_gain)
        if not self.enabled and any(one is not None for one in given):
            raise VaExportError("anchors=False contradicts given gains", where="generate", fix="leave one of them out")
        alpha_k, alpha_v = arguments.alphas(self.alpha_k, self.alpha_v, self.key_log_gain, self.value_gain)
        object.__setattr__(self, "alpha_k", alpha_k)
        object.__setattr__(self, "alpha_v", alpha_v)

    @property
    def needs_score(self) -> bool:
        """Whether some gains follow from the score."""
        return self.enabled and (self.key_log_gain is None or self.value_gain is None)

    def gains(self, prepared: Prepared, scored: Scored | None, settings: GainSettings) -> tuple[Float32, Float32]:
        """key_log_gain and value_gain of a prompt, (S,) each; zeros and ones where nothing was scored or given.

        Raises:
            VaExportError: given gains of another length, or not finite.
        """
        length = prepared.length
        log_gain, gain = np.zeros(length, np.float32), np.ones(length, np.float32)
        if scored is not None:
            alpha_k, alpha_v = self.alpha_k, self.alpha_v
            if alpha_k is None or alpha_v is None:
                found_k, found_v = alphas_of_prompt(settings, scored.sharing_score, length)
                alpha_k = found_k if alpha_k is None else alpha_k
                alpha_v = found_v if alpha_v is None else alpha_v
            log_gain, gain = gains_from_score(
                scored.sharing_score, prepared.is_scored[0], length, alpha_k=alpha_k, alpha_v=alpha_v
            )
        if self.key_log_gain is not None:
            log_gain = arguments.gain("key_log_gain", self.key_log_gain, length)
        if self.value_gain is not None:
            gain = arguments.gain("value_gain", self.value_gain, length)
        return log_gain, gain
