"""What the three commands share: options, logging, how they run and how they end."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.text import Text
from typer import Option

from va_export._version import __version__
from va_export.cli.failures import failure
from va_export.cli.process import abandon_streams, claim_standard_output, set_up_signals, set_up_streams
from va_export.errors import VaExportError
from va_export.progress import standard_error

LOG_LEVELS = ("debug", "info", "warning", "error")
_JSON = "--json"
_NARROWEST = 24  # characters of a line that anything is laid out for
_TWO_COLUMNS = 66  # characters of a line; with fewer, what is right of the options' names is words one below the other


def _show_version(asked: bool) -> None:
    if asked:
        print(f"va-export {__version__}")
        raise typer.Exit


LogLevel = Annotated[str, Option(help="debug, info, warning or error.")]
AsJson = Annotated[bool, Option(_JSON, help="Print the result as one line of JSON, and nothing else, to stdout.")]
TrustPlugins = Annotated[
    bool, Option("--trust-plugins", help="Execute the bundle's own library and engines, whoever made them.")
]
Version = Annotated[bool, Option("--version", callback=_show_version, is_eager=True, help="Print the version.")]


@dataclass(frozen=True)
class Result:
    """How a command ended.

    Attributes:
        document: what `--json` prints.
        code: the exit code.
    """

    document: Mapping[str, Any] = field(default_factory=dict)
    code: int = 0


def set_up_logging(level: str) -> None:
    """Send log records to standard error, a line each; third-party chatter comes through only at `debug`.

    Raises:
        VaExportError: an unknown level.
    """
    if level not in LOG_LEVELS:
        raise VaExportError(
            f"unknown log level {level!r}", where="--log-level", fix=f"use one of: {', '.join(LOG_LEVELS)}"
        )
    logging.basicConfig(
        level=level.upper() if level == "debug" else "WARNING",
        format="%(levelname)s %(name)s: %(message)s",
        handlers=[_Lines()],
        force=True,
    )
    logging.getLogger("va_export").setLevel(level.upper())
    if level != "debug":
        # TensorRT's errors come back in the exception's message; logging them too would say everything twice.
        logging.getLogger("va_export.tensorrt").setLevel(logging.CRITICAL)
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


class _Lines(logging.Handler):
    """Log records above the live line of a terminal, whole: a path that is broken over lines cannot be copied."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            standard_error().print(Text(self.format(record)), soft_wrap=True)
        except Exception:
            self.handleError(record)


def run(command: Callable[..., Result]) -> None:
    """Run a command as a console script."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    set_up_streams()
    set_up_signals()
    sys.exit(execute(command, sys.argv[1:], Path(sys.argv[0]).name))


def execute(command: Callable[..., Result], arguments: Sequence[str], program: str = "va-export") -> int:
    """Run a command and say how it ended: in JSON on standard output where that was asked for, else an error on
    standard error. Returns the exit code."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(command)
    parser = _readable(typer.main.get_command(app))
    output: TextIO | None = claim_standard_output() if _JSON in arguments else None
    try:
        result = _result(parser, program, list(arguments))
        _print(result.document, output)
        return result.code
    except BaseException as error:
        ended = failure(error, program)
    try:
        for line in (ended.message, *ended.notes):
            if line:
                print(line, file=sys.stderr, flush=True)
        _print(ended.document, output)
    except OSError:  # there is nobody left to tell
        abandon_streams()
    return ended.code


def _readable(parser: Any) -> Any:
    """A parser whose `--help` has each option's text below it where the terminal has no room for two columns."""
    context_class = parser.context_class
    formatter_class: Any = context_class.formatter_class

    class Formatter(formatter_class):  # type: ignore[misc]
        def write_dl(self, rows: Sequence[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
            super().write_dl(rows, col_max if self.width >= _TWO_COLUMNS else 4, col_spacing)

    parser.context_class = type("Context", (context_class,), {"formatter_class": Formatter})
    return parser


def _result(parser: Any, program: str, arguments: list[str]) -> Result:
    try:
        width = min(max(shutil.get_terminal_size().columns, _NARROWEST), 100) - 1
        with parser.make_context(program, arguments, terminal_width=width) as context:
            result: Result = parser.invoke(context)
            return result
    except typer.Exit as asked:  # --help and --version
        return Result(code=asked.exit_code)


def _print(document: Mapping[str, Any], output: TextIO | None) -> None:
    """The document where it was asked for, and what waits to be written: an error comes now, not at Python's end."""
    if output is not None:
        print(json.dumps(document), file=output, flush=True)
    sys.stdout.flush()
