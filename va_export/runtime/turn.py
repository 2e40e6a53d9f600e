"""One answer at a time."""

from __future__ import annotations

import threading

from va_export.errors import VaExportError


class Turn:
    """Whose turn it is: backends have one KV cache, and a GPU one stream. Other threads wait; a thread that has not
    finished its own answer would wait for itself, and is told."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None

    def __enter__(self) -> None:
        if self._owner == threading.get_ident():
            raise VaExportError(
                "another answer of this bundle has not ended yet",
                where="bundle",
                fix="read it to its end, or close it, before the next is asked for",
            )
        self._lock.acquire()
        self._owner = threading.get_ident()

    def __exit__(self, *_: object) -> None:
        self._owner = None
        self._lock.release()
