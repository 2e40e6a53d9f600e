"""What the commands share: exit codes, messages, logging."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Outcome, call

from va_export.cli.console import set_up_logging, user_errors
from va_export.errors import VaExportError


def command_raising(error: BaseException) -> Outcome:
    def command() -> None:
        with user_errors():
            raise error

    return call(command)


def test_a_user_error_is_one_message_with_place_and_cure() -> None:
    outcome = command_raising(VaExportError("it broke", where="here", fix="mend it"))
    assert (outcome.code, outcome.stdout) == (2, "")
    assert outcome.stderr == "error: it broke\n  where: here\n  fix:   mend it\n"


@pytest.mark.parametrize(("error", "code", "words"), [
    (KeyboardInterrupt(), 130, "interrupted"),
    (MemoryError(), 2, "out of memory"),
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 2, "free some space"),
    (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/some/file"), 2, "/some/file"),
])  # fmt: skip
def test_what_the_machine_does_is_one_message(error: BaseException, code: int, words: str) -> None:
    outcome = command_raising(error)
    assert outcome.code == code and words in outcome.stderr and outcome.stdout == ""


def test_our_own_bugs_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        command_raising(ZeroDivisionError())


def test_sigterm_ends_a_command_as_control_c_does(tmp_path: Path) -> None:
    code = f"""
import os, signal, time
from pathlib import Path
from va_export.cli.console import run, user_errors
def command() -> None:
    with user_errors():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        finally:
            Path({str(tmp_path / "cleaned")!r}).touch()
run(command)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=60,
        check=False,
    )
    assert done.returncode == 130 and "Traceback" not in done.stderr and (tmp_path / "cleaned").exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # only a command's own process


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
