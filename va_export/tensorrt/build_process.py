"""Build an engine in a process of its own: its memory returns to the system, and its death is an error message."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

from msgspec.structs import replace

from va_export.documents import convert, encode
from va_export.errors import VaExportError
from va_export.tensorrt.api import LOG
from va_export.tensorrt.build import partial_file
from va_export.tensorrt.build_log import OnProgress
from va_export.tensorrt.build_worker import Asked
from va_export.tensorrt.engine_info import BuildRequest, EngineInfo

# The child imports from where this process does, whatever way that was set up.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    " from va_export.tensorrt.build_worker import main; main(int(sys.argv[2]))"
)
_TAIL_BYTES = 2000


def build_in_process(
    request: BuildRequest,
    engine_path: Path,
    on_progress: OnProgress | None = None,
    memory_fix: str = "free some memory, or use a larger machine",
) -> EngineInfo:
    """`build_engine` in a child process, which is gone when this returns or raises.

    Args:
        on_progress: called in this thread with (phase, steps done, steps in all).
        memory_fix: what a user can do when the memory does not suffice.

    Raises:
        VaExportError: as `build_engine`, or the child was killed, as Linux does with a process when memory runs out.
        RuntimeError: a bug in the child, with its traceback.
    """
    read_end, write_end = os.pipe()
    with tempfile.TemporaryFile() as printed, os.fdopen(read_end, encoding="utf-8") as messages:
        try:
            child = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, json.dumps(sys.path), str(write_end)],
                stdin=subprocess.PIPE,
                stdout=printed,
                stderr=printed,
                pass_fds=(write_end,),
            )
        finally:
            os.close(write_end)
        try:
            _ask(child, request, engine_path)
            result = _listen(messages, on_progress)
            child.wait()
            if result is None:
                raise _death(child.returncode, _tail(printed), request.onnx_path, memory_fix)
            return _outcome(result, request.onnx_path, memory_fix)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
            partial_file(engine_path, child.pid).unlink(missing_ok=True)


def _ask(child: subprocess.Popen[bytes], request: BuildRequest, engine_path: Path) -> None:
    request = replace(request, onnx_path=request.onnx_path.absolute())
    asked = Asked(request, engine_path.absolute(), os.getpid(), LOG.getEffectiveLevel())
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died already, which its exit code will say
        child.stdin.write(encode(asked))
        child.stdin.close()


def _listen(messages: IO[str], on_progress: OnProgress | None) -> list[Any] | None:
    """Pass progress and log on until the child closes its end; returns its last word, or None if it had none."""
    result = None
    for line in messages:
        try:
            message = json.loads(line)
        except ValueError:  # cut off in the middle: the child was killed
            continue
        match message:
            case ["progress", phase, done, total]:
                if on_progress is not None:
                    on_progress(phase, done, total)
            case ["log", level, text]:
                LOG.log(level, text)
            case _:
                result = message
    return result


def _outcome(result: list[Any], onnx_path: Path, memory_fix: str) -> EngineInfo:
    match result:
        case ["built", data]:
            return convert(data, EngineInfo, what="the build's result", where=onnx_path, fix="please report this")
        case ["refused", what, where, fix]:
            raise VaExportError(what, where=where, fix=fix)
        case ["out_of_memory"]:
            raise VaExportError("building the engine ran out of memory", where=onnx_path, fix=memory_fix)
    raise RuntimeError(f"the process that builds engines failed:\n{result[-1]}")


def _death(code: int, printed: str, onnx_path: Path, memory_fix: str) -> VaExportError:
    """The error for a child that ended without a word."""
    if code == -signal.SIGKILL:
        what = "the process that builds the engine was killed (SIGKILL), as Linux does when memory runs out"
        return VaExportError(what, where=onnx_path, fix=memory_fix)
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    what = f"the process that builds the engine ended with {how}: {printed or 'it printed nothing'}"
    return VaExportError(what, where=onnx_path, fix="try --log-level debug; please report this")


def _tail(printed: IO[bytes]) -> str:
    printed.seek(0, os.SEEK_END)
    printed.seek(max(0, printed.tell() - _TAIL_BYTES))
    return printed.read().decode(errors="replace").strip()
