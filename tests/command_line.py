"""The three commands, called in this process: what they printed and how they ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import typer
from typer.testing import CliRunner

TINY = ("--model", "internvl2-tiny")


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def message(self) -> str:
        """The error message; there must be exactly one, and no traceback."""
        assert self.stderr.count("error:") == 1 and "Traceback" not in self.stderr, self.stderr
        return self.stderr[self.stderr.index("error:") :]


def call(command: Callable[..., None], *arguments: object) -> Outcome:
    """Run a command; an exception that is not an exit is a bug, and goes on."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


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
