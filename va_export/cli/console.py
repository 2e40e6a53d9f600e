"""What the three commands share: messages, exit codes, logging."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.logging import RichHandler

from va_export._version import __version__
from va_export.errors import VaExportError

LOG_LEVELS = ("debug", "info", "warning", "error")
EXIT_ERROR, EXIT_FAILED_PARITY, EXIT_INTERRUPTED = 2, 1, 130


def show_version(asked: bool) -> None:
    """Callback of `--version`."""
    if asked:
        print(f"va-export {__version__}")
        raise typer.Exit


def set_up_logging(level: str) -> None:
    """Send log records to standard error; third-party chatter comes through only at `debug`.

    Raises:
        VaExportError: an unknown level.
    """
    if level not in LOG_LEVELS:
        raise VaExportError(
            f"unknown log level {level!r}", where="--log-level", fix=f"use one of: {', '.join(LOG_LEVELS)}"
        )
    logging.basicConfig(
        level=level.upper() if level == "debug" else "WARNING",
        format="%(name)s: %(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_path=False)],
        force=True,
    )
    logging.getLogger("va_export").setLevel(level.upper())
    if level != "debug":
        # TensorRT's errors come back in the exception's message; logging them too would say everything twice.
        logging.getLogger("va_export.tensorrt").setLevel(logging.CRITICAL)
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn anticipated failures into one message and an exit code; leave our own bugs their traceback."""
    try:
        yield
    except VaExportError as error:
        print(f"error: {error}", file=sys.stderr)
        _print_notes(error)
        raise typer.Exit(EXIT_ERROR) from None
    except KeyboardInterrupt as error:
        print("interrupted" if _notes(error) else "interrupted: nothing was left behind", file=sys.stderr)
        _print_notes(error)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except MemoryError as error:
        print(
            "error: the machine ran out of memory\n  fix:   export parts with --components, or use a larger machine",
            file=sys.stderr,
        )
        _print_notes(error)
        raise typer.Exit(EXIT_ERROR) from None
    except OSError as error:
        # A full disk, a folder that vanished, a file that lost its permissions: the machine's, not a bug.
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        fix = "free some space, or write to another disk" if full else "check the path and its permissions"
        where = error.filename or "the file system"
        print(f"error: {error.strerror or error}\n  where: {where}\n  fix:   {fix}", file=sys.stderr)
        _print_notes(error)
        raise typer.Exit(EXIT_ERROR) from None


def _notes(error: BaseException) -> list[str]:
    """What was added to an exception on its way, such as where unfinished work is kept."""
    return list(getattr(error, "__notes__", ()))


def _print_notes(error: BaseException) -> None:
    for note in _notes(error):
        print(note, file=sys.stderr)


def run(command: Callable[..., None]) -> None:
    """Run a typer command as a console script."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as after Ctrl-C
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(command)
    app()
