"""Progress of the stages of a run: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Never

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text


class _Console(Console):
    def on_broken_pipe(self) -> Never:
        """Called where the pipe's end is found. rich would end the process with 1, which means a failed parity."""
        raise


@cache
def standard_error() -> Console:
    """The one console on standard error: lines that go through it stay clear of a live display."""
    return _Console(stderr=True)


@dataclass
class Stage:
    """One running stage; its owner reports how far it is and, at the end, a detail worth a line."""

    _report: _Reporter
    detail: str = ""

    def advance(self, done: int, total: int) -> None:
        """Say that `done` of `total` units are finished."""
        self._report.advance(done, total)

    def byte_counter(self, total: int) -> Callable[[int], None]:
        """Show the stage from now on as so many of `total` bytes, with rate and time left; the result is called with
        the number of bytes that were done since its last call."""
        done = 0
        self._report.count_bytes()
        self.advance(0, total)

        def count(more: int) -> None:
            nonlocal done
            done += more
            self.advance(done, total)

        return count

    def say(self, detail: str) -> None:
        """Set the detail that is printed behind the stage when it ends."""
        self.detail = detail
        self._report.describe(detail)


class _Reporter:
    def advance(self, done: int, total: int) -> None: ...

    def describe(self, detail: str) -> None: ...

    def count_bytes(self) -> None: ...


class _LiveReporter(_Reporter):
    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._task = progress.add_task(name, total=None, detail="", bytes=False)

    def advance(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total)

    def describe(self, detail: str) -> None:
        self._progress.update(self._task, detail=detail)

    def count_bytes(self) -> None:
        # `reset` starts rate and time left anew, and replaces a task's fields by those it is given: all go in.
        fields = {**self._progress.tasks[0].fields, "bytes": True}  # each stage has a display of its own: one task
        self._progress.reset(self._task, total=None, **fields)


class _OfBytes(ProgressColumn):
    """A column that only stages which count bytes have."""

    def __init__(self, column: ProgressColumn) -> None:
        super().__init__()
        self._column = column

    def render(self, task: Task) -> RenderableType:
        return self._column.render(task) if task.fields["bytes"] else Text()


@dataclass
class StageDisplay:
    """Shows stages one after another, each with its elapsed time.

    Attributes:
        console: where to write; a terminal gets a live display.
        seconds: elapsed time by stage, filled as stages end.
    """

    console: Console = field(default_factory=standard_error)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Run one stage. On an exception the line says that the stage failed, and the exception goes on."""
        start = time.perf_counter()
        live = self.console.is_terminal
        progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),  # a path may hold [brackets]
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            _OfBytes(DownloadColumn()),
            _OfBytes(TransferSpeedColumn()),
            _OfBytes(TimeRemainingColumn()),
            TextColumn("{task.fields[detail]}", style="dim", markup=False),
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
        self.console.print(Text(text), soft_wrap=True)

    def _line(self, mark: str, style: str, name: str, seconds: float, detail: str) -> None:
        if self.console.options.ascii_only:
            mark = {"✓": "+", "✗": "x"}[mark]
        line = Text.assemble((mark, style), f" {name:<26}{seconds:8.1f} s", (f"  {detail}" if detail else "", "dim"))
        self.console.print(line, soft_wrap=True)
