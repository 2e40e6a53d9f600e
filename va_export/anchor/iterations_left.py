"""How many iterations the self-expression solver will take, told from the residuals of those that it has taken.

On the paper's own cases and on synthetic clips, the logarithm of the residual falls about in proportion to the root of
the iterations: fast at first, when entries of C find their tokens, and slowly at the end, when few still move. The line
through the latest residual and the one at half of its iterations, carried on to eps, told halfway 0.9 to 1.2 times what
it was in the end, on synthetic clips of 512 and 1024 tokens. A constant factor an iteration told 0.8 to 1.0 times, and
at a fifth of the way half of it; a power 1.1 to 1.9 times.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field

OnProgress = Callable[[int, int | None], None]  # iterations taken, and in all, None where nothing is known yet


@dataclass
class IterationsLeft:
    """The residuals so far, and what follows from them; eps and max_iter are the solver's."""

    eps: float
    max_iter: int
    _iterations: list[int] = field(default_factory=list)
    _residuals: list[float] = field(default_factory=list)

    def note(self, iterations: int, residual: float) -> None:
        """Add the residual after so many iterations, which rise from call to call."""
        self._iterations.append(iterations)
        self._residuals.append(residual)

    def expected(self) -> int | None:
        """Iterations in all, those taken included; None where the residual does not fall, or was noted only once."""
        taken, residual = self._iterations[-1], self._residuals[-1]
        if residual < self.eps or taken >= self.max_iter:
            return taken
        half = bisect_left(self._iterations, taken // 2, hi=len(self._iterations) - 1)
        earlier, before = self._iterations[half], self._residuals[half]
        if earlier == taken or not residual < before < math.inf:
            return None
        slope = math.log(before / residual) / (math.sqrt(taken) - math.sqrt(earlier))
        root = math.sqrt(taken) + math.log(residual / self.eps) / slope
        return min(max(taken + 1, round(root * root)), self.max_iter)
