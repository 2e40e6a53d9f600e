"""What the commands share: exit codes, messages, logging."""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path

import pytest
from command_line import Outcome, call

from va_export.cli.console import Result, set_up_logging
from va_export.cli.process import Interrupted
from va_export.cli.run import run_command
from va_export.errors import VaExportError


def command_raising(error: BaseException, *arguments: str) -> Outcome:
    def command(as_json: bool = False) -> Result:
        raise error

    return call(command, *arguments)


def test_a_user_error_is_one_message_with_place_and_cure() -> None:
    outcome = command_raising(VaExportError("it broke", where="here", fix="mend it"))
    assert (outcome.code, outcome.stdout) == (2, "")
    assert outcome.stderr == "error: it broke\n  where: here\n  fix:   mend it\n"


@pytest.mark.parametrize(("error", "code", "words"), [
    (KeyboardInterrupt(), 130, "interrupted"),
    (Interrupted(15), 143, "interrupted"),
    (BrokenPipeError(), 141, ""),
    (MemoryError(), 2, "out of memory"),
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 2, "free some space"),
    (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/some/file"), 2, "/some/file"),
])  # fmt: skip
def test_what_the_machine_does_is_one_message(error: BaseException, code: int, words: str) -> None:
    outcome = command_raising(error)
    assert outcome.code == code and words in outcome.stderr and outcome.stdout == ""


def test_our_own_bugs_keep_their_traceback() -> None:
    outcome = command_raising(ZeroDivisionError("x"))
    assert outcome.code == 70 and "Traceback" in outcome.stderr and outcome.stdout == ""
    assert outcome.stderr.splitlines()[-2].startswith("error: va-export crashed: ZeroDivisionError: x")
    assert "report" in outcome.stderr.splitlines()[-1]


def test_a_log_record_is_one_line_however_long(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        set_up_logging("warning")
        logging.getLogger("va_export.example").warning("at %s", "/long path" * 40)
    finally:
        root.handlers[:], root.level = handlers, level
        logging.getLogger("va_export").setLevel(logging.NOTSET)
    assert "/long path" * 40 in capsys.readouterr().err


def test_a_usage_error_is_one_message_in_our_form(tmp_path: Path) -> None:
    for arguments, where in (
        (["--fames", "3"], "--fames"),
        (["--frames"], "--frames"),
        (["--frames", "x"], "--frames"),
        ([], "--video"),
    ):
        outcome = call(run_command, "bundle" * 30, "--prompt", "x", *arguments)
        assert outcome.code == 2 and f"\n  where: {where}\n  fix:   " in outcome.message and outcome.stdout == ""
        assert len(outcome.stderr.splitlines()) == 3
        told = json.loads(call(run_command, "bundle", *arguments, "--json").stdout)
        assert told["error"]["exit_code"] == 2


def test_other_libraries_are_heard_only_when_debugging(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        set_up_logging("info")
        logging.getLogger("somebody.else").info("chatter")
        logging.getLogger("va_export.example").info("told")
        set_up_logging("debug")
        logging.getLogger("somebody.else").debug("detail")
    finally:
        root.handlers[:], root.level = handlers, level
        logging.getLogger("va_export").setLevel(logging.NOTSET)
        logging.getLogger("va_export.tensorrt").setLevel(logging.NOTSET)
    errors = capsys.readouterr().err
    assert "told" in errors and "detail" in errors and "chatter" not in errors
