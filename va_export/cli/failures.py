"""How a command ends that did not do what was asked: the message, and the exit code."""

from __future__ import annotations

import errno
import platform
import signal
import sys
import traceback
from dataclasses import dataclass
from typing import Any

from typer.exceptions import TyperException

from va_export._version import __version__
from va_export.cli.process import Interrupted
from va_export.errors import VaExportError

EXIT_FAILED_PARITY, EXIT_ERROR = 1, 2
EXIT_CRASH = 70  # EX_SOFTWARE of sysexits.h
_SIGNALLED = 128  # as a shell counts: 129 for SIGHUP, 130 for SIGINT, 141 for SIGPIPE, 143 for SIGTERM
EXIT_BROKEN_PIPE = _SIGNALLED + signal.SIGPIPE


@dataclass(frozen=True)
class Failure:
    """An exception as people and programs are told of it.

    Attributes:
        message: what is printed to standard error; empty says nothing.
        notes: lines that follow, such as where unfinished work is kept.
    """

    what: str
    where: str | None
    fix: str | None
    code: int
    message: str
    notes: tuple[str, ...] = ()

    @property
    def document(self) -> dict[str, Any]:
        """The line of `--json`."""
        told = {"what": self.what, "where": self.where, "fix": self.fix, "exit_code": self.code}
        return {"error": {**told, **({"notes": list(self.notes)} if self.notes else {})}}


def failure(error: BaseException, program: str) -> Failure:
    """What a command's exception means. What is not expected is our own fault, and keeps its traceback."""
    notes = tuple(getattr(error, "__notes__", ()))
    match error:
        case VaExportError():
            return _told(error, EXIT_ERROR, notes)
        case TyperException():
            return _told(_usage(error, program), EXIT_ERROR, notes)
        case KeyboardInterrupt():
            number = error.signal if isinstance(error, Interrupted) else signal.SIGINT
            message = "interrupted" if notes else "interrupted: nothing was left behind"
            return Failure("interrupted", None, None, _SIGNALLED + number, message, notes)
        case BrokenPipeError():  # whoever read our output has gone, and wants no more of it
            return Failure("the reader of the output has gone", "standard output", None, EXIT_BROKEN_PIPE, "")
        case MemoryError():
            fix = "export parts with --components, or use a larger machine"
            return _told(VaExportError("the machine ran out of memory", where="memory", fix=fix), EXIT_ERROR, notes)
        case OSError():
            return _told(_of_the_machine(error), EXIT_ERROR, notes)
        case _:
            return _crash(error)


def _told(error: VaExportError, code: int, notes: tuple[str, ...]) -> Failure:
    return Failure(error.what, error.where, error.fix, code, f"error: {error}", notes)


def _usage(error: TyperException, program: str) -> VaExportError:
    """A command line that does not parse."""
    parameter = getattr(error, "param", None)
    name = getattr(error, "option_name", None) or (max(parameter.opts, key=len) if parameter is not None else None)
    return VaExportError(error.format_message(), where=name or program, fix=f"{program} --help lists what it takes")


def _of_the_machine(error: OSError) -> VaExportError:
    """A full disk, a folder that vanished, a file that lost its permissions: not a bug."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    fix = "free some space, or write to another disk" if full else "check the path and its permissions"
    where = error.filename if isinstance(error.filename, str) else "the file system"
    return VaExportError(error.strerror or str(error) or type(error).__name__, where=where, fix=fix)


def _crash(error: BaseException) -> Failure:
    what = f"va-export crashed: {type(error).__name__}: {error}".rstrip(": ")
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    where = f"{frame[0].filename}:{frame[0].lineno}" if frame else None
    versions = f"va-export {__version__}, Python {platform.python_version()}, {sys.platform}"
    fix = f"this is a fault of va-export ({versions}): please report it to its maintainers with all of these lines"
    lines = "".join(traceback.format_exception(error))
    return Failure(what, where, fix, EXIT_CRASH, f"{lines}error: {what.splitlines()[0]}\n  fix:   {fix}")
