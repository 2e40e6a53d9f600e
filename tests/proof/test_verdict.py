"""A verdict says what ran for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from va_export.proof.documents import NotRun, Parity, ParityRun
from va_export.proof.verdict import NOT_BUILT, engines_not_run, verdict, what_ran

ORT = ParityRun("onnxruntime", "cpu", "plugin", True, ())
RTX = ParityRun("tensorrt-rtx", "cuda", "plugin", True, ())
FAILED = ParityRun(
    "onnxruntime",
    "cpu",
    "plugin",
    False,
    (SimpleNamespace(stage="prefill_logits", passed=False),),  # type: ignore
)
BUILT = engines_not_run(["tensorrt-rtx"], "no NVIDIA GPU on the machine of the export")
UNBUILT = [NotRun("TensorRT engines", f"{NOT_BUILT}--onnx-only", "")]


def document(passed: bool, runs: list[ParityRun], not_run: list[NotRun]) -> Parity:
    return Parity(passed, "fp16", "PyTorch", tuple(runs), tuple(not_run))


@pytest.mark.parametrize(("parity", "said"), [
    (None, "parity not run"),
    ({"passed": True, "runs": [ORT, ORT], "not_run": BUILT},
     "parity passed on ONNX Runtime, CPU; engines not run here"),
    ({"passed": True, "runs": [ORT], "not_run": UNBUILT}, "parity passed on ONNX Runtime, CPU; engines not built"),
    ({"passed": True, "runs": [RTX], "not_run": []}, "parity passed on TensorRT-RTX, GPU"),
    ({"passed": False, "runs": [FAILED], "not_run": BUILT},
     "PARITY FAILED on ONNX Runtime, CPU; engines not run here: prefill_logits"),
])  # fmt: skip
def test_the_sentence(parity: dict[str, Any] | None, said: str) -> None:
    assert verdict(None if parity is None else document(**parity)) == said


def test_two_backends_are_both_named() -> None:
    assert what_ran(document(passed=True, runs=[ORT, RTX, ORT], not_run=[])) == [
        "ONNX Runtime, CPU",
        "TensorRT-RTX, GPU",
    ]
