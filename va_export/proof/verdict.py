"""What a verdict says: whether parity passed, what ran for it and what did not."""

from __future__ import annotations

from collections.abc import Iterable

from va_export.proof.documents import NotRun, Parity

NOT_BUILT = "not built: "
"""How the reason of a row of `not_run` begins where there is nothing to run."""
_NAMES = {"onnxruntime": "ONNX Runtime", "torch": "PyTorch", "tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}


def what_ran(parity: Parity) -> list[str]:
    """Backend and device of every run of parity.json, as "ONNX Runtime, CPU", none twice."""
    names = [
        f"{_NAMES.get(backend, backend)}, {'CPU' if device == 'cpu' else 'GPU' if device == 'cuda' else device}"
        for backend, device in ((run.backend, run.device) for run in parity.runs)
    ]
    return list(dict.fromkeys(names))


def scope(parity: Parity) -> str:
    """What the verdict holds for: "on ONNX Runtime, CPU; engines not run here"."""
    parts = [f"on {' and '.join(what_ran(parity)) or 'nothing'}"]
    reasons = [row.reason for row in parity.not_run]
    if any(not reason.startswith(NOT_BUILT) for reason in reasons):
        parts.append("engines not run here")
    if any(reason.startswith(NOT_BUILT) for reason in reasons):
        parts.append("engines not built")
    return "; ".join(parts)


def verdict(parity: Parity | None) -> str:
    """The verdict of parity.json in one line; None: there is none.

    "parity passed on ONNX Runtime, CPU; engines not run here".
    """
    if parity is None:
        return "parity not run"
    if parity.passed:
        return f"parity passed {scope(parity)}"
    failed = [check.stage for run in parity.runs for check in run.checks if not check.passed]
    return f"PARITY FAILED {scope(parity)}: {', '.join(dict.fromkeys(failed))}"


def engines_not_run(flavors: Iterable[str], reason: str) -> list[NotRun]:
    """Rows of `not_run` for engines that are there and were not asked."""
    return [NotRun(f"{flavor} engines", reason, f"va-check BUNDLE --backend {flavor}") for flavor in flavors]
