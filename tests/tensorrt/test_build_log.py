from __future__ import annotations

import logging

import pytest

from va_export.tensorrt.api import TensorRT
from va_export.tensorrt.build_log import create_build_log, create_progress_monitor


def test_messages_go_to_logging_and_errors_are_kept(rtx: TensorRT, caplog: pytest.LogCaptureFixture) -> None:
    log = create_build_log(rtx)
    severity = rtx.module.ILogger.Severity
    with caplog.at_level(logging.INFO, "va_export.tensorrt"):
        log.logger.log(severity.WARNING, "a warning")
        log.logger.log(severity.VERBOSE, "chatter")
        log.logger.log(severity.ERROR, "node 7 is wrong")
        log.logger.log(severity.ERROR, "Cuda Runtime (cudaError 35: CUDA driver version is insufficient)")
    assert [(record.levelno, record.message) for record in caplog.records][:2] == [
        (logging.WARNING, "a warning"),
        (logging.ERROR, "node 7 is wrong"),
    ]
    assert len(log.errors) == 2
    assert log.cause() == "node 7 is wrong"  # what every machine without a driver adds is left out


def test_a_missing_driver_is_named_when_it_is_the_only_cause(rtx: TensorRT) -> None:
    log = create_build_log(rtx)
    assert log.cause() == "no reason given"
    log.logger.log(rtx.module.ILogger.Severity.ERROR, "cudaError 35: no driver")
    assert "cudaError 35" in log.cause()


def test_progress_counts_steps(rtx: TensorRT) -> None:
    calls: list[tuple[str, int, int]] = []
    monitor = create_progress_monitor(rtx, lambda *call: calls.append(call))
    monitor.phase_start("Building engine", None, 2)
    assert monitor.step_complete("Building engine", 0) is True
    monitor.phase_finish("Building engine")
    assert calls == [("Building engine", 0, 2), ("Building engine", 1, 2), ("Building engine", 2, 2)]
