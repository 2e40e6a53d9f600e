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


@pytest.mark.parametrize("terminal", [False, True])
def test_a_stage_that_counts_bytes_keeps_what_it_said(terminal: bool) -> None:
    """rich's `Progress.reset` replaces a task's fields: the main job once ended there, on terminals only."""
    stream = io.StringIO()
    display = StageDisplay(Console(file=stream, force_terminal=terminal, width=200))
    with display.stage("export") as stage:
        stage.say("tracing")
        count = stage.byte_counter(2000)
        count(500)
        count(1500)
        stage.byte_counter(10)(10)  # a second count in one stage
        stage.say("2 tensors")
    text = stream.getvalue()
    assert "export" in text and text.rstrip().removesuffix("\x1b[0m").endswith("2 tensors")
    assert ("10/10 bytes" in text) == terminal  # what the last drawing shows


def test_a_live_line_shows_text_as_it_is() -> None:
    """Paths with brackets or colons are neither markup (which raises) nor emoji."""
    stream = io.StringIO()
    display = StageDisplay(Console(file=stream, force_terminal=True, width=200))
    with display.stage("read [/bold] :smile: {x}") as stage:
        stage.say("/tmp/[/red]:clip:{0}.mp4")
    live, line = stream.getvalue().rsplit("\x1b[2K", 1)
    for shown in (live, line):
        assert "read [/bold] :smile: {x}" in shown
    assert "/tmp/[/red]:clip:{0}.mp4" in line
