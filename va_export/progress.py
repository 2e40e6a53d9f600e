"""Progress of the stages of a run: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text


@dataclass
class Stage:
    """One running stage; its owner reports how far it is and, at the end, a detail worth a line."""

    _report: _Reporter
    detail: str = ""

    def advance(self, done: int, total: int) -> None:
        """Say that `done` of `total` units are finished."""
        self._report.advance(done, total)

    def say(self, detail: str) -> None:
        """Set the detail that is printed behind the stage when it ends."""
        self.detail = detail
        self._report.describe(detail)


class _Reporter:
    def advance(self, done: int, total: int) -> None: ...

    def describe(self, detail: str) -> None: ...


class _LiveReporter(_Reporter):
    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._task = progress.add_task(name, total=None, detail="")

    def advance(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total)

    def describe(self, detail: str) -> None:
        self._progress.update(self._task, detail=detail)


@dataclass
class StageDisplay:
    """Shows stages one after another, each with its elapsed time.

    Attributes:
        console: where to write; a terminal gets a live display.
        seconds: elapsed time by stage, filled as stages end.
    """

    console: Console = field(default_factory=lambda: Console(stderr=True))
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Run one stage. On an exception the line says that the stage failed, and the exception goes on."""
        start = time.perf_counter()
        live = self.console.is_terminal
        progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}", style="dim"),
            console=self.console,
            transient=True,
            disable=not live,
        )
        with progress:
            stage = Stage(_LiveReporter(progress, name) if live else _Reporter())
            try:
                yield stage
            except BaseException:
                self._line("✗", "red", name, time.perf_counter() - start, "failed")
                raise
        self.seconds[name] = time.perf_counter() - start
        self._line("✓", "green", name, self.seconds[name], stage.detail)

    def note(self, text: str) -> None:
        """Print one line that belongs to no stage."""
        self.console.print(Text(text))

    def _line(self, mark: str, style: str, name: str, seconds: float, detail: str) -> None:
        line = Text.assemble((mark, style), f" {name:<26}{seconds:8.1f} s", (f"  {detail}" if detail else "", "dim"))
        self.console.print(line, soft_wrap=True)
