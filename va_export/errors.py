"""The one exception type that users see.

Every anticipated failure is raised as a `VaExportError` that says what happened, where, and what to do next;
the command-line tools print it as one message and exit non-zero. A traceback is for our own bugs.
"""

from __future__ import annotations

import re
from pathlib import Path


class VaExportError(Exception):
    """What went wrong, where, and what to do about it.

    Args:
        what: one sentence naming the fault and the values involved.
        where: the file, directory, tensor, node or option that it is about.
        fix: what the reader can do next, as an imperative sentence.
    """

    def __init__(self, what: str, *, where: str | Path, fix: str | None = None) -> None:
        self.what = what
        self.where = _own_name(str(where))
        self.fix = fix
        super().__init__(what)

    def __str__(self) -> str:
        text = f"{self.what}\n  where: {self.where}"
        if self.fix:
            text += f"\n  fix:   {self.fix}"
        return text


def _own_name(path: str) -> str:
    """The path of a file that is read through a descriptor (`bundle/held.py`), which says more than its number."""
    match = re.match(r"/proc/self/fd/\d+", path)
    try:
        return path if match is None else str(Path(match[0]).readlink()) + path[match.end() :]
    except OSError:  # closed by now
        return path
