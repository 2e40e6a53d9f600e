"""What surrounds a command's process: its standard streams, whatever they are, and the signals that end it."""

from __future__ import annotations

import codecs
import os
import signal
import sys
import termios
from types import FrameType
from typing import Never, TextIO, cast

_ESCAPES = "va_export_bytes_or_escapes"
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal that asks the command to end; everything cleans up as after Ctrl-C.

    Attributes:
        signal: its number.
    """

    def __init__(self, number: int) -> None:
        self.signal = number
        super().__init__()


def set_up_streams() -> None:
    """Give the process three standard streams that take all text.

    One that the caller has closed leads to /dev/null: otherwise the next file that is opened would get its number, and
    what native libraries print. A character that the stream's encoding lacks is written as an escape; a byte of an
    argument that was no text (a path may hold any) is written as that byte.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            _lead_to_null(descriptor)
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))
    codecs.register_error(_ESCAPES, _bytes_or_escapes)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors=_ESCAPES)  # type: ignore[union-attr]


def claim_standard_output() -> TextIO:
    """Standard output for the caller alone: what anything else prints from now on, libraries in C and child processes
    included, goes to standard error."""
    claimed = cast(TextIO, sys.stdout)
    if claimed is sys.__stdout__ and claimed.fileno() == 1:
        claimed.flush()
        claimed = os.fdopen(os.dup(1), "w", encoding="utf-8", errors=_ESCAPES)
        os.dup2(2, 1)
    sys.stdout = sys.stderr
    return claimed


def abandon_streams() -> None:
    """Lead standard output and error nowhere, so that Python's own flush at its end, of what could not be written, is
    quiet."""
    for descriptor in (1, 2):
        _lead_to_null(descriptor)


def set_up_signals() -> None:
    """Let SIGTERM and SIGHUP end the command as Ctrl-C does: by an exception, so that everything cleans up. One that
    the caller had ignored (`nohup`) stays so."""
    terminals = [stream.fileno() for stream in (sys.stdout, sys.stderr) if stream.isatty()]

    def end(number: int, _: FrameType | None) -> Never:
        for other in (signal.SIGTERM, signal.SIGHUP):  # often sent twice; Ctrl-C again still cuts the cleaning short
            signal.signal(other, signal.SIG_IGN)
        for descriptor in terminals:
            try:
                termios.tcgetattr(descriptor)
            except termios.error:  # it was hung up: writing a message there would fail
                _lead_to_null(descriptor)
        raise Interrupted(number)

    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


def _lead_to_null(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)


def _bytes_or_escapes(error: UnicodeError) -> tuple[bytes, int]:
    """Error handler of an encoder: see `set_up_streams`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    encoded = [
        bytes([ord(character) - 0xDC00]) if "\udc80" <= character <= "\udcff" else ascii(character)[1:-1].encode()
        for character in characters
    ]
    return b"".join(encoded), error.end
