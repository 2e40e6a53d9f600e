"""The process that builds one engine and ends, so that all of its memory goes back; `build_process` starts it.

The request comes as JSON on standard input. What happens goes out as JSON lines through a pipe of its own, so that
whatever a library prints cannot come between: `progress`, `log`, and at the end one of `built`, `refused`,
`out_of_memory` and `bug`.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from va_export.documents import Form, decode, encode
from va_export.errors import VaExportError
from va_export.tensorrt.api import LOG
from va_export.tensorrt.build import build_engine
from va_export.tensorrt.engine_info import BuildRequest

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Asked(Form, frozen=True):
    """What the process is to do.

    Attributes:
        parent: the id of the process that asks.
        log_level: from which on messages are handed over.
    """

    request: BuildRequest
    engine_path: Path
    parent: int
    log_level: int


class _Channel:
    """Messages to the parent, whole lines even when TensorRT's threads speak at once."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "wb")
        self._lock = threading.Lock()

    def send(self, kind: str, *content: Any) -> None:
        """Write one message."""
        line = encode([kind, *content], indent=None)
        with self._lock:
            self._file.write(line)
            self._file.flush()


class _LogHandler(logging.Handler):
    """Hands log records to the parent."""

    def __init__(self, channel: _Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        self._channel.send("log", record.levelno, record.getMessage())


def main(descriptor: int) -> None:
    """Build what standard input asks for; messages go to the file `descriptor`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent too, which ends this process
    channel = _Channel(descriptor)
    try:
        asked = decode(sys.stdin.buffer.read(), Asked, what="the request", where="request", fix="please report this")
        _die_with_parent(asked.parent)
        LOG.setLevel(asked.log_level)
        LOG.addHandler(_LogHandler(channel))
        LOG.propagate = False
        info = build_engine(
            asked.request, asked.engine_path, lambda phase, done, total: channel.send("progress", phase, done, total)
        )
    except VaExportError as error:
        channel.send("refused", error.what, error.where, error.fix)
    except MemoryError:
        channel.send("out_of_memory")
    except Exception:
        channel.send("bug", traceback.format_exc())
    else:
        channel.send("built", replace(info, peak_memory_bytes=_peak_memory()))


def _die_with_parent(parent: int) -> None:
    """Have the kernel end this process when its parent is gone, however that went."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:  # it went before the line above
        os._exit(1)


def _peak_memory() -> int | None:
    """Peak resident bytes of this process. (getrusage would count the parent's, from before exec.)"""
    match = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    return int(match.group(1)) << 10 if match else None
