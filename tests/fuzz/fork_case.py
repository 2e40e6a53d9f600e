"""One case in a process of its own, forked from one that has imported everything, with bounds on time and memory.

No thread may be alive when this forks: a lock that it held would stay locked in the child.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import resource
import select
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from va_export.errors import VaExportError

_ACCEPTED, _REFUSED, _FOUND = 0, 70, 71
_FRAME = re.compile(r'File "([^"]*)", line \d+,? in (\S+)')


@dataclass(frozen=True)
class Bounds:
    """What one case may take: bytes of address space beyond the parent's, seconds of the CPU and of the clock."""

    memory: int = 2 << 30
    cpu_seconds: int = 20
    wall_seconds: float = 120.0


@dataclass(frozen=True)
class End:
    """How a case ended.

    Attributes:
        what: of a find: the exception or signal and where in the package, the same for the same fault; else empty.
        text: what the case wrote to standard error.
    """

    kind: Literal["accepted", "refused", "find"]
    what: str = ""
    text: str = ""


def check_no_threads() -> None:
    """Raise RuntimeError where another thread runs in this process."""
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        raise RuntimeError("threads are alive, so nothing may be forked: something imported here has started them")


def run_case(case: Callable[[], None], bounds: Bounds) -> End:
    """Run it in a child; it is to return, or to raise VaExportError, and to write nothing to standard output."""
    check_no_threads()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if not child:
            _run_here(case, bounds, out.fileno(), err.fileno())
        in_time = _wait(child, bounds.wall_seconds)
        with contextlib.suppress(ProcessLookupError):  # whatever it started ends with it
            os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        printed, text = _content(out.fileno()), _content(err.fileno())
    if not in_time:
        return End("find", f"ran longer than {bounds.wall_seconds:.0f} s", text)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = "more CPU time than allowed" if number == signal.SIGXCPU else signal.Signals(number).name
        return End("find", f"{name} in {_place(text)}", text)
    if printed:
        return End("find", "wrote to standard output", printed)
    match os.WEXITSTATUS(status):
        case 0:
            return End("accepted", text=text)
        case 70:
            return End("refused", text=text)
        case code:
            last = text.strip().splitlines()[-1] if text.strip() else f"exit code {code}"
            return End("find", f"{last.split(':')[0]} in {_place(text)}", text)


def prepare(work: Callable[[], None]) -> None:
    """Do something in a child without bounds, so that its threads and its memory end with it.

    Raises:
        RuntimeError: it failed, with what it wrote.
    """
    end = run_case(work, Bounds(memory=1 << 44, cpu_seconds=3600, wall_seconds=3600.0))
    if end.kind != "accepted" and end.what != "wrote to standard output":
        raise RuntimeError(f"the valid input cannot be made: {end.what}\n{end.text}")


def _run_here(case: Callable[[], None], bounds: Bounds, out: int, err: int) -> None:
    """In the child; does not return."""
    code = _FOUND
    try:
        os.setpgid(0, 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False, errors="backslashreplace", buffering=1)  # noqa: SIM115
        faulthandler.enable(2)
        faulthandler.register(signal.SIGXCPU, file=2, chain=True)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + bounds.memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CPU, (bounds.cpu_seconds, bounds.cpu_seconds + 2))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            case()
            code = _ACCEPTED
        except VaExportError as error:
            print(error, file=sys.stderr)
            code = _REFUSED
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _wait(child: int, seconds: float) -> bool:
    """Whether the child ended within so many seconds."""
    descriptor = os.pidfd_open(child)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(descriptor)


def _content(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, 1 << 20).decode(errors="replace")


def _place(text: str) -> str:
    """The innermost function of the package in a traceback, which is where a fault is mended most often."""
    innermost_first = "most recent call first" in text
    frames = [
        f"{path.rsplit('va_export/', 1)[1]}:{name}"
        for path, name in _FRAME.findall(text)
        if "va_export/" in path and "tests/fuzz" not in path
    ]
    return (frames[0 if innermost_first else -1]) if frames else "nothing of the package"
