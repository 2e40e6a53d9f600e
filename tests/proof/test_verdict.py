"""A verdict says what ran for it."""

from __future__ import annotations

from typing import Any

import pytest

from va_export.proof.verdict import NOT_BUILT, engines_not_run, verdict, what_ran

ORT = {"backend": "onnxruntime", "device": "cpu", "checks": []}
RTX = {"backend": "tensorrt-rtx", "device": "cuda", "checks": []}
FAILED = {**ORT, "checks": [{"stage": "prefill_logits", "passed": False}, {"stage": "score_graph", "passed": True}]}
BUILT = engines_not_run(["tensorrt-rtx"], "no NVIDIA GPU on the machine of the export")
UNBUILT = [{"what": "TensorRT engines", "reason": f"{NOT_BUILT}--onnx-only", "command": ""}]


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
    assert verdict(parity) == said


def test_two_backends_are_both_named() -> None:
    assert what_ran({"runs": [ORT, RTX, ORT]}) == ["ONNX Runtime, CPU", "TensorRT-RTX, GPU"]
