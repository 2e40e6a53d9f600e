"""Runs va-export again and again in processes of their own, each of which kills itself at a given event.

Importing PyTorch takes longer than exporting the tiny model, so it is imported once, here, and every run is a fork that
has not used it yet: as real a process as any, and SIGKILL ends it between two instructions.

Events are what a run does to the disk: every write, flush and rename. They are counted: a number names a moment.

Input: JSON on stdin: the command's arguments, the event that ends each run (null: none), and sizes (null: as they
are). Output: JSON on stdout, the exit code of each run, negative for a signal.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any


def count_events(kill_at: int | None) -> None:
    """Make this process count its events, and kill itself in the middle of number `kill_at`."""
    events = 0

    def event(torn: Callable[[], object] = lambda: None) -> None:
        nonlocal events
        events += 1
        if events == kill_at:
            torn()
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(module: Any, name: str) -> None:
        original = getattr(module, name)

        def call(*arguments: Any, **options: Any) -> Any:
            event()
            return original(*arguments, **options)

        setattr(module, name, call)

    pwrite = os.pwrite

    def torn_pwrite(descriptor: int, content: Any, offset: int) -> int:
        event(lambda: pwrite(descriptor, memoryview(content)[: len(content) // 2], offset))
        return pwrite(descriptor, content, offset)

    os.pwrite = torn_pwrite  # type: ignore[assignment]
    for name in ("fsync", "posix_fallocate", "ftruncate", "rename", "mkdir", "unlink", "rmdir"):
        watched(os, name)


def run(arguments: list[str], kill_at: int | None) -> int:
    """One run in a fork; returns its exit code."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            count_events(kill_at)
            from va_export.cli.export import main

            sys.argv = ["va-export", *arguments]
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def main() -> None:
    """Entry point."""
    job = json.load(sys.stdin)
    import torch
    import torch._dynamo
    import torch.onnx._internal.exporter._core

    import va_export.export.build_engines
    import va_export.export.components
    import va_export.graph.stream_weights as stream
    import va_export.graph.weight_pieces as weight_pieces
    import va_export.pipeline  # noqa: F401

    torch.set_num_threads(1)
    stream.MARK_BYTES = job["mark_bytes"] or stream.MARK_BYTES
    weight_pieces.BLOCK_ELEMENTS = job["block_elements"] or weight_pieces.BLOCK_ELEMENTS
    print(json.dumps([run(job["arguments"], kill) for kill in job["kills"]]))


if __name__ == "__main__":
    main()
