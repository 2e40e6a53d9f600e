"""A long score says how far it is; a short one says nothing."""

from __future__ import annotations

import io

from rich.console import Console

from va_export.cli.score_display import ScoreDisplay


class Clock:
    def __init__(self) -> None:
        self.seconds = 5.0

    def __call__(self) -> float:
        return self.seconds


def shown(terminal: bool, times: list[float], expected: int | None) -> str:
    stream, clock = io.StringIO(), Clock()
    display = ScoreDisplay(Console(file=stream, force_terminal=terminal, width=200), clock)
    display(0, expected)
    for time in times:
        clock.seconds = 5.0 + time
        display(round(10 * time), expected)
    display.close()
    return stream.getvalue()


def test_nothing_before_two_seconds() -> None:
    for terminal in (True, False):
        assert shown(terminal, [0.5, 1.0, 1.9], 1000) == ""


def test_lines_elsewhere_when_the_time_has_doubled() -> None:
    assert shown(False, [1, 2, 3, 4, 5, 9], 1000).splitlines() == [
        f"scoring visual tokens: {done} of about 1000 iterations, about {left} left"
        for done, left in ((20, "2 min"), (40, "2 min"), (90, "2 min"))  # 98, 96 and 91 s
    ]
    assert shown(False, [20], 1000) == "scoring visual tokens: 200 of about 1000 iterations, about 80 s left\n"


def test_no_time_where_nothing_is_known_and_no_line_at_the_end() -> None:
    assert shown(False, [3], None) == "scoring visual tokens: 30 iterations\n"
    assert shown(False, [3], 30) == ""


def test_a_live_line_on_a_terminal_that_goes() -> None:
    text = shown(True, [3, 4], 60)
    assert "40 of about 60 iterations, about 2 s left" in text
    assert text.endswith("\x1b[2K") and "\x1b[?25h" in text  # the line is erased, the cursor is back
