"""The installed commands under a pseudo-terminal, as a person at a keyboard runs them."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_INHERITED = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES", "CI")


@dataclass(frozen=True)
class Screen:
    """How a command ended and every byte that it sent to the terminal, escape sequences included."""

    code: int
    raw: str

    @property
    def text(self) -> str:
        """What was sent, without escape sequences."""
        return _ESCAPE.sub("", self.raw).replace("\r\n", "\n")

    @property
    def lines(self) -> list[str]:
        """Lines that stayed on the screen: of those that were redrawn in place, the last form."""
        return [line.rsplit("\r", 1)[-1] for line in self.text.splitlines()]


def run_on_terminal(
    command: str, *arguments: object, columns: int = 100, environment: Mapping[str, str] | None = None
) -> Screen:
    """Run one of the installed commands with standard input, output and error on one terminal of that width."""
    path = Path(sys.executable).parent / command
    inherited = {name: value for name, value in os.environ.items() if name not in _INHERITED}
    variables = {**inherited, "TERM": "xterm-256color", **(environment or {})}
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [str(path), *map(str, arguments)], stdin=terminal, stdout=terminal, stderr=terminal, env=variables
    )
    os.close(terminal)
    chunks = []
    try:
        while True:
            try:
                chunk = os.read(master, 1 << 16)
            except OSError:  # the other end was closed: the command has ended
                break
            if not chunk:
                break
            chunks.append(chunk)
    finally:
        os.close(master)
        code = process.wait(timeout=60)
    return Screen(code, b"".join(chunks).decode())
