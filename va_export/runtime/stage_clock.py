"""What the stages of an answer take."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from va_export.runtime.backends.backend import Backend


class StageClock:
    """Milliseconds by stage, the host's and, where the backend tells, the GPU's."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.milliseconds: dict[str, float] = {}
        self.gpu_milliseconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._backend.take_gpu_milliseconds()
        start = time.perf_counter()
        yield
        self._add(stage, 1e3 * (time.perf_counter() - start))
        spent = self._backend.take_gpu_milliseconds()
        if spent and stage != "total":  # total holds the others, which have taken theirs
            self.gpu_milliseconds[stage] = self.gpu_milliseconds.get(stage, 0.0) + spent

    def add_parts(self, stage: str, milliseconds: Mapping[str, float]) -> None:
        """Count what parts of a stage have taken."""
        for part, spent in milliseconds.items():
            self._add(f"{stage}/{part}", spent)

    def _add(self, stage: str, spent: float) -> None:
        self.milliseconds[stage] = self.milliseconds.get(stage, 0.0) + spent
