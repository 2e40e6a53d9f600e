"""Which token comes next: the likeliest, or one that is drawn.

The order is that of Transformers' logits processors: repetition penalty, temperature, top-k, top-p. The draw inverts
the cumulative distribution in the order of ids, at a uniform number of NumPy's PCG64, so that a seed means the same
tokens wherever the logits are the same.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from va_export.errors import VaExportError
from va_export.runtime import values

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
_MOST = 1e6  # of temperatures and penalties; beyond, every token is as likely as any other


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; as it is, the likeliest.

    Attributes:
        temperature: logits are divided by it; 0: the likeliest token.
        top_k: only so many of the likeliest; 0: all.
        top_p: only the likeliest that together are so likely (arXiv 1904.09751).
        repetition_penalty: of tokens that were there already, in the prompt or the answer (arXiv 1909.05858); 1: none.
        seed: of the draw; None: another every time.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        checked = {
            "temperature": values.number("temperature", self.temperature, least=0, below=_MOST),
            "top_k": values.whole_number("top_k", self.top_k, least=0),
            "top_p": values.number("top_p", self.top_p, least=0, below=np.nextafter(1, 2)),
            "repetition_penalty": values.number("repetition_penalty", self.repetition_penalty, least=1e-3, below=_MOST),
            "seed": self.seed if self.seed is None else values.whole_number("seed", self.seed, least=0),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken, as the device's own loop does."""
        return self.temperature == 0 and self.repetition_penalty == 1

    def seeded(self) -> Sampling:
        """The same with a seed, so that an answer can say which it had."""
        return self if self.seed is not None else replace(self, seed=secrets.randbits(63))

    def probabilities(self, logits: Float32, seen: Iterable[int]) -> Float64:
        """Of every token, (V,); temperature must not be 0.

        Args:
            logits: (V,).
            seen: ids that the penalty is for.
        """
        scores = self._penalised(logits, seen) / self.temperature
        if 0 < self.top_k < len(scores):
            scores[scores < np.partition(scores, -self.top_k)[-self.top_k]] = -np.inf
        likely = np.exp(scores - scores.max())
        likely /= likely.sum()
        if self.top_p < 1:
            order = np.argsort(-likely, kind="stable")
            before = np.cumsum(likely[order]) - likely[order]  # of the likelier ones
            likely[order[1:][before[1:] >= self.top_p]] = 0
            likely /= likely.sum()
        return np.asarray(likely)

    def _penalised(self, logits: Float32, seen: Iterable[int]) -> Float64:
        scores = logits.astype(np.float64)
        if self.repetition_penalty != 1:
            ids = np.fromiter(set(seen), np.int64)
            scores[ids] *= np.where(scores[ids] < 0, self.repetition_penalty, 1 / self.repetition_penalty)
        return scores


GREEDY = Sampling()


@dataclass(frozen=True)
class LogProbability:
    """Natural logarithms of how likely tokens were, by the model's logits as they are.

    Attributes:
        chosen: of the token that was taken.
        likeliest: the likeliest ids and theirs, in falling order.
    """

    chosen: float
    likeliest: tuple[tuple[int, float], ...]


class TokenChoice:
    """Chooses the tokens of one answer, one after another.

    Args:
        prompt: ids of the prompt, for the repetition penalty.
        logprobs: how many of the likeliest tokens are noted with each choice; None: nothing is noted.
    """

    def __init__(self, sampling: Sampling, prompt: Iterable[int], logprobs: int | None = None) -> None:
        self.sampling = sampling.seeded()
        self.noted: list[LogProbability] = []
        self._n_noted = None if logprobs is None else values.whole_number("logprobs", logprobs, least=0)
        self._seen = set(prompt)
        self._random = np.random.Generator(np.random.PCG64(self.sampling.seed))

    @property
    def is_plain(self) -> bool:
        """Whether the likeliest token and nothing else is wanted, so that the device may choose."""
        return self.sampling.is_greedy and self._n_noted is None

    def __call__(self, logits: Float32) -> int:
        """The token that follows, from (V,) logits.

        Raises:
            VaExportError: logits that are not finite: NaN would win every argmax, and the answer be noise, unsaid.
        """
        if not np.isfinite(logits).all():
            raise not_finite()
        token = self._choose(logits)
        self._seen.add(token)
        if self._n_noted is not None:
            self.noted.append(_noted(logits, token, self._n_noted))
        return token

    def _choose(self, logits: Float32) -> int:
        if self.sampling.temperature == 0:
            return int(self.sampling._penalised(logits, self._seen).argmax())
        cumulative = np.cumsum(self.sampling.probabilities(logits, self._seen))
        # Of equal sums the first is a token's own, those after it are of tokens that cannot be drawn.
        drawn = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(min(drawn, np.searchsorted(cumulative, cumulative[-1])))


def _noted(logits: Float32, token: int, count: int) -> LogProbability:
    scores = logits.astype(np.float64)
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())
    order = np.argsort(-scores, kind="stable")[:count]
    return LogProbability(float(scores[token]), tuple((int(one), float(scores[one])) for one in order))


def not_finite() -> VaExportError:
    """The error for logits that are NaN or infinite."""
    return VaExportError(
        "the decoder's logits are not finite: its activations do not fit the precision",
        where="decoder",
        fix="export with --precision bf16 or --precision fp32",
    )
