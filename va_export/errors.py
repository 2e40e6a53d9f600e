"""The one exception type that users see.

Every anticipated failure is raised as a `VaExportError` that says what happened, where, and what to do next;
the command-line tools print it as one message and exit non-zero. A traceback is for our own bugs.
"""

from __future__ import annotations

from pathlib import Path


class VaExportError(Exception):
    """What went wrong, where, and what to do about it.

    Args:
        what: one sentence naming the fault and the values involved.
        where: the file, directory, tensor, node or option that it is about.
        fix: what the reader can do next, as an imperative sentence.
    """

    def __init__(self, what: str, *, where: str | Path | None = None, fix: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.fix = fix
        super().__init__(what)

    def __str__(self) -> str:
        text = self.what
        if self.where:
            text += f"\n  where: {self.where}"
        if self.fix:
            text += f"\n  fix:   {self.fix}"
        return text
