"""Stages on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from va_export.progress import StageDisplay


def run(terminal: bool) -> tuple[str, StageDisplay]:
    stream = io.StringIO()
    display = StageDisplay(Console(file=stream, force_terminal=terminal, width=80))
    with display.stage("build") as stage:
        for done in range(1, 4):
            stage.advance(done, 3)
        stage.say("[three] steps " + "x" * 100)
    display.note("a note [not markup]")
    return stream.getvalue(), display


def test_plain_lines_without_a_terminal() -> None:
    text, display = run(terminal=False)
    lines = text.splitlines()
    assert len(lines) == 2 and "\x1b" not in text and "\r" not in text  # long details are not wrapped
    assert lines[0].startswith("✓ build ") and lines[0].endswith(" s  [three] steps " + "x" * 100)
    assert lines[1] == "a note [not markup]"
    assert set(display.seconds) == {"build"} and display.seconds["build"] >= 0


def test_a_live_line_on_a_terminal() -> None:
    text, _ = run(terminal=True)
    assert "\x1b[" in text and "✓" in text and "[three] steps" in text


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_stage_that_fails_says_so_and_lets_the_error_through(error: type[BaseException], terminal: bool) -> None:
    stream = io.StringIO()
    display = StageDisplay(Console(file=stream, force_terminal=terminal))
    with pytest.raises(error), display.stage("build"):
        raise error
    assert "✗" in stream.getvalue() and "failed" in stream.getvalue() and display.seconds == {}
