"""The main job on a terminal, whole: what is drawn there is drawn by other code than what goes through a pipe."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from command_line import TINY
from terminal import run_on_terminal

COLOR = re.compile(r"\x1b\[[0-9;]*(3[0-9]|9[0-7]|38;)[0-9;]*m")


@pytest.mark.usefixtures("needs_engines")
@pytest.mark.parametrize(
    ("environment", "columns"),
    [({}, 100), ({"NO_COLOR": "1"}, 100), ({"TERM": "dumb"}, 100), ({}, 40)],
    ids=["plain", "no-color", "dumb", "40-columns"],
)
def test_the_main_job_on_a_terminal(tmp_path: Path, environment: Mapping[str, str], columns: int) -> None:
    output = tmp_path / "bundle"
    screen = run_on_terminal(
        "va-export", *TINY, "--fp16", "--latency-iterations", 2, "-o", output, environment=environment, columns=columns
    )
    assert screen.code == 0, screen.text
    assert "Traceback" not in screen.text
    assert str(output) in screen.lines[-1]  # whole, however narrow the terminal
    assert (output / "report.html").is_file()
    ended = [line for line in screen.lines if line.startswith("✓")]
    for stage in ("export decoder", "build decoder engine", "parity onnxruntime/plugin", "seal bundle"):
        assert any(stage in line for line in ended), stage
    assert bool(COLOR.search(screen.raw)) == (environment == {})
    assert ("\x1b" in screen.raw) == (environment.get("TERM") != "dumb")


@pytest.mark.parametrize("columns", [40, 100])
def test_an_answer_and_a_check_on_a_terminal(tiny_bundle: Path, clip: Path, columns: int) -> None:
    asked = run_on_terminal(
        "va-run", tiny_bundle, "--video", clip, "--prompt", "What moves?", "--max-new-tokens", 4, columns=columns
    )
    assert asked.code == 0 and "Traceback" not in asked.text, asked.text
    checked = run_on_terminal("va-check", tiny_bundle, "--latency-iterations", 1, columns=columns)
    assert checked.code == 0 and "Traceback" not in checked.text, checked.text
    assert str(tiny_bundle) in checked.lines[-1]


def test_an_error_on_a_terminal_is_one_message(tmp_path: Path) -> None:
    missing = tmp_path / "no[/bold]where"
    screen = run_on_terminal("va-run", missing, "--video", "x.mp4", "--prompt", "x", columns=40)
    assert screen.code == 2 and screen.text.count("error:") == 1 and "Traceback" not in screen.text
    assert str(missing) in screen.text
