"""TensorRT's two callbacks in Python's terms: its log goes to `logging`, its progress to a function."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from va_export.tensorrt.api import LOG, TensorRT

# phase, steps done, steps in all
OnProgress = Callable[[str, int, int], None]

# What a machine without a driver adds to every error, whatever its cause.
_DRIVERLESS = "cudaError 35"


@dataclass
class BuildLog:
    """What TensorRT logged.

    Attributes:
        logger: the object to hand to TensorRT; must outlive everything that was given it.
        errors: messages of severity error and above, oldest first.
    """

    logger: Any
    errors: list[str] = field(default_factory=list)

    def cause(self) -> str:
        """The errors in one text, without the ones that only say that this machine has no driver."""
        telling = [text for text in self.errors if _DRIVERLESS not in text] or self.errors
        return "; ".join(dict.fromkeys(telling)) or "no reason given"


def create_build_log(api: TensorRT) -> BuildLog:
    """A logger that passes messages to the Python logger `va_export.tensorrt` and keeps the errors."""
    severity = api.module.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        severity.INFO: logging.INFO,
        severity.VERBOSE: logging.DEBUG,
    }
    errors: list[str] = []

    base: Any = api.module.ILogger

    class PythonLogger(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, level: Any, message: str) -> None:
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                errors.append(message.strip())
            # TensorRT prints every pass at VERBOSE; do not cross into logging for what nobody reads.
            if LOG.isEnabledFor(levels[level]):
                LOG.log(levels[level], message)

    return BuildLog(PythonLogger(), errors)


def create_progress_monitor(api: TensorRT, on_progress: OnProgress) -> Any:
    """A monitor that calls `on_progress` for every step; a phase without steps is reported as 0 of 0."""
    totals: dict[str, int] = {}

    base: Any = api.module.IProgressMonitor

    class PythonMonitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            totals[phase_name] = num_steps
            on_progress(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            total = totals.get(phase_name, 0)
            on_progress(phase_name, min(step + 1, total), total)
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            total = totals.pop(phase_name, 0)
            on_progress(phase_name, total, total)

    return PythonMonitor()
