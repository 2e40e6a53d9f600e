"""The three commands, called in this process: what they printed and how they ended."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from refusals import holds

from va_export.cli.console import Result, execute

TINY = ("--model", "internvl2-tiny")


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    def refuses(self, where: str | Path, *named: object) -> None:
        """It ended in one message with where and fix, and printed no result; see `refusals.refused`."""
        assert (self.code, self.stdout) == (2, ""), self.stderr
        what, _, rest = self.message.removeprefix("error: ").partition("\n  where: ")
        said, _, cure = rest.partition("\n  fix:   ")
        holds(what, said, cure, where, *named)

    @property
    def message(self) -> str:
        """The error message; there must be exactly one, and no traceback."""
        assert self.stderr.count("error:") == 1 and "Traceback" not in self.stderr, self.stderr
        return self.stderr[self.stderr.index("error:") :]


def call(command: Callable[..., Result], *arguments: object) -> Outcome:
    """Run a command as its console script does, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = execute(command, [str(argument) for argument in arguments])
    return Outcome(code, out.getvalue(), err.getvalue())


def va_export(*arguments: object) -> Outcome:
    """`va-export`."""
    from va_export.cli.export import export_command

    return call(export_command, *arguments)


def va_run(*arguments: object) -> Outcome:
    """`va-run`."""
    from va_export.cli.run import run_command

    return call(run_command, *arguments)


def va_check(*arguments: object) -> Outcome:
    """`va-check`."""
    from va_export.cli.check import check_command

    return call(check_command, *arguments)
