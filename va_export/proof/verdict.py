"""What a verdict says: whether parity passed, what ran for it and what did not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

NOT_BUILT = "not built: "
"""How the reason of a row of `not_run` begins where there is nothing to run."""
_NAMES = {"onnxruntime": "ONNX Runtime", "torch": "PyTorch", "tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}


def what_ran(parity: Mapping[str, Any]) -> list[str]:
    """Backend and device of every run of parity.json, as "ONNX Runtime, CPU", none twice."""
    names = [
        f"{_NAMES.get(backend, backend)}, {'CPU' if device == 'cpu' else 'GPU' if device == 'cuda' else device}"
        for backend, device in ((str(run.get("backend")), str(run.get("device"))) for run in parity.get("runs") or ())
    ]
    return list(dict.fromkeys(names))


def scope(parity: Mapping[str, Any]) -> str:
    """What the verdict holds for: "on ONNX Runtime, CPU; engines not run here"."""
    parts = [f"on {' and '.join(what_ran(parity)) or 'nothing'}"]
    reasons = [str(row.get("reason") or "") for row in parity.get("not_run") or ()]
    if any(not reason.startswith(NOT_BUILT) for reason in reasons):
        parts.append("engines not run here")
    if any(reason.startswith(NOT_BUILT) for reason in reasons):
        parts.append("engines not built")
    return "; ".join(parts)


def verdict(parity: Mapping[str, Any] | None) -> str:
    """The verdict of parity.json in one line; None: there is none.

    "parity passed on ONNX Runtime, CPU; engines not run here".
    """
    if parity is None:
        return "parity not run"
    if parity.get("passed") is True:
        return f"parity passed {scope(parity)}"
    failed = [check["stage"] for run in parity.get("runs") or () for check in run["checks"] if not check["passed"]]
    return f"PARITY FAILED {scope(parity)}: {', '.join(dict.fromkeys(failed))}"


def engines_not_run(flavors: Iterable[str], reason: str) -> list[dict[str, str]]:
    """Rows of `not_run` for engines that are there and were not asked."""
    return [
        {"what": f"{flavor} engines", "reason": reason, "command": f"va-check BUNDLE --backend {flavor}"}
        for flavor in flavors
    ]
