"""The process that tests kernels: it may crash, hang, or take the driver with it, and whoever started it goes on.

It is given an `Asked` on standard input and writes a line of JSON before each kernel and one after it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from va_export.documents import decode, encode
from va_export.errors import VaExportError
from va_export.native import kernels
from va_export.native.device import Device
from va_export.native.kernels import PHASES, PRODUCTS, Phase
from va_export.native.selftest.attention_checks import WrongError, check_attention
from va_export.native.selftest.documents import Asked, AttentionShape, Finding

_ROOM = 512 << 20  # bytes of GPU memory


def main() -> None:
    """Entry point."""
    asked = decode(sys.stdin.buffer.read(), Asked, what="what the self-test is asked", where="stdin", fix="report this")
    lines = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever else prints, prints elsewhere
    phases = {phase.name: phase for phase in PHASES}
    try:
        device = Device(Path(asked.library), asked.device, _ROOM)
    except VaExportError as error:  # as where the GPU is another process's alone
        lines.write(encode({"unavailable": error.what}, indent=None))
        return
    kernels.bind(device.library)
    for name, kernel in asked.kernels:
        lines.write(encode({"running": [name, kernel]}, indent=None))
        finding = _test(device, phases[name], kernel, asked.shape)
        lines.write(encode({"found": finding}, indent=None))
        if finding.fault.startswith(_CUDA):
            return  # a failure on the GPU may stay with the process


_CUDA = "CUDA: "


def _test(device: Device, phase: Phase, kernel: str, shape: AttentionShape) -> Finding:
    try:
        if phase == PRODUCTS:
            from va_export.native.selftest.score_checks import check_score

            times: tuple[float, ...] = check_score(device, kernel)
        else:
            times = check_attention(device, phase, kernel, shape)
    except WrongError as error:
        return Finding(phase.name, kernel, fault=str(error))
    except VaExportError as error:
        return Finding(phase.name, kernel, fault=_CUDA + error.what)
    return Finding(phase.name, kernel, milliseconds=times)


def event(line: bytes) -> dict[str, Any]:
    """A line that the process wrote: `running`, `found` or `unavailable`."""
    found: dict[str, Any] = json.loads(line)
    return found
