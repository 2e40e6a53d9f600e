"""Parts of a GPU script in processes of their own: a kernel that breaks the CUDA context takes its own part with it,
and what was measured before stays."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from va_export.evidence.document import Document, Row, check_row

END = "end"


def write_rows(path: Path, rows: Iterable[tuple[str, Row]]) -> None:
    """In the worker: append each (kind, row) as it comes, a line of JSON each, and at last that all have come."""
    with path.open("a", encoding="utf-8") as file:
        for kind, row in rows:
            file.write(json.dumps([kind, row]) + "\n")
            file.flush()
        file.write(json.dumps([END, {}]) + "\n")


def run_worker(
    name: str,
    command: Sequence[str],
    rows: Path,
    document: Document,
    *,
    environment: Mapping[str, str] | None = None,
    timeout_seconds: float | None = None,
) -> None:
    """Run `command`, which calls `write_rows(rows, …)`, and add its rows to the document's lists.

    A worker that dies, or is stopped after `timeout_seconds`, adds a failed check of its name with its last words.
    """
    rows.unlink(missing_ok=True)
    log = rows.with_suffix(".log")
    with log.open("w", encoding="utf-8") as output:
        # In a session of its own, so that what it starts (a sanitizer starts the program) ends with it.
        worker = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        try:
            code = worker.wait(timeout_seconds)
            status = f"ended with status {code}"
        except subprocess.TimeoutExpired:
            code, status = -1, "was stopped: it ran too long"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
    lines = rows.read_text(encoding="utf-8").splitlines() if rows.is_file() else []
    ended = False
    for line in lines:
        try:
            kind, row = json.loads(line)
        except ValueError:
            break  # the line that it was writing
        if kind == END:
            ended = True
        else:
            document[kind].append(row)
    if code != 0 or not ended:
        said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        message = " | ".join([f"the process {status}", *said[-4:]])
        document["checks"].append(check_row(f"{name}: ran to its end", False, message=message[:1000]))
        print(f"{name}: {message}", file=sys.stderr)
