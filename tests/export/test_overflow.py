"""A model whose weights fit float16 and whose activations do not: found, kept for inspection, never called good."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
from command_line import va_export

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "internvl2_tiny"

ROUTES = {
    "vision": (("mlp1.1.weight", "mlp1.3.weight"), "visual_tokens"),
    "decoder": (("language_model.model.norm.weight", "language_model.output.weight"), "prefill_logits"),
}


@pytest.mark.parametrize("part", sorted(ROUTES))
def test_float16_overflow_fails_parity_and_keeps_the_bundle(part: str, tmp_path: Path) -> None:
    weights, stage = ROUTES[part]
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    shutil.copy(GOLDEN / "config.json", checkpoint)
    tensors = safetensors.torch.load_file(GOLDEN / "model.safetensors")
    for name in weights:  # each as large as float16 allows: their product is not
        tensors[name] *= 6e4 / tensors[name].abs().max()
    safetensors.torch.save_file(tensors, checkpoint / "model.safetensors")
    output = tmp_path / "bundle"
    result = va_export("--model", checkpoint, "--subspaces", 8, "--fp16", "--onnx-only", "-o", output)
    assert result.code == 1, result.stderr
    assert not output.exists()
    failed = tmp_path / "bundle.failed"
    parity = json.loads((failed / "parity.json").read_text())
    bad = [check["stage"] for check in parity["runs"][0]["checks"] if check["nan"] or check["inf"]]
    assert stage in bad
    assert not parity["passed"]
    assert not (failed / "latency.json").exists()
    assert "FAIL" in (failed / "report.html").read_text()
