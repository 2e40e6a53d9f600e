"""How far a long score is: from two seconds on, a live line on a terminal, and elsewhere a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console
from rich.status import Status

from va_export.progress import standard_error

_SHORT_SECONDS = 2.0


@dataclass
class ScoreDisplay:
    """Called with the iterations that a score has taken and is expected to take in all (`on_score` of `Bundle.open`).
    Its time begins with its first call, which comes after about a second of the solver.

    Attributes:
        console: where to write.
        clock: seconds, from any start.
    """

    console: Console = field(default_factory=standard_error)
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._first: tuple[float, int] | None = None  # when it began, and the iterations taken by then
        self._next_line = _SHORT_SECONDS
        self._live: Status | None = None

    def __call__(self, done: int, expected: int | None) -> None:
        """Show it, or nothing where the score is short or at its end."""
        if done == expected:
            return self.close()
        if self._first is None:
            self._first = self.clock(), done
        seconds = self.clock() - self._first[0]
        if seconds < _SHORT_SECONDS:
            return None
        text = f"scoring visual tokens: {done} iterations"
        if expected is not None:
            left = seconds * (expected - done) / (done - self._first[1])
            text = f"scoring visual tokens: {done} of about {expected} iterations, about {_duration(left)} left"
        if self.console.is_terminal:
            self._live = self._live or self.console.status(text)
            self._live.update(text)
            self._live.start()
        elif seconds >= self._next_line:
            self._next_line = 2 * seconds
            self.console.print(text, soft_wrap=True, highlight=False)
        return None

    def close(self) -> None:
        """End a score: take the live line away, if there is one."""
        self._first, self._next_line = None, _SHORT_SECONDS
        if self._live is not None:
            self._live.stop()


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
