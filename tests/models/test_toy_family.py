"""A newcomer's walk through the house: a family of one file and one row is exported, proved and asked.

Nothing in the package knows of it: if a central file does, this fails.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from command_line import va_export
from toy_family import Toy

from va_export import models
from va_export.bundle import manifest as manifest_module
from va_export.runtime.bundle import Bundle


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Toy().write_tiny_checkpoint(tmp_path_factory.mktemp("toy") / "checkpoint")


def test_a_family_is_a_folder_and_a_row(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "FAMILIES", (*models.FAMILIES, Toy()))
    calls: Counter[str] = Counter()
    weight_map, read_manifest = Toy.weight_map, manifest_module.read_manifest

    def counted_map(self: Toy, spec):  # type: ignore[no-untyped-def]
        calls["weight_map"] += 1
        return weight_map(self, spec)

    monkeypatch.setattr(Toy, "weight_map", counted_map)
    options = ("--fp32", "--onnx-only", "--subspaces", 4, "--decoder-shards", 2, "--latency-iterations", 1)
    outcome = va_export("--model", checkpoint, "-o", tmp_path / "bundle", *options)
    assert outcome.code == 0, outcome.stderr

    parity = json.loads((tmp_path / "bundle" / "parity.json").read_text())
    assert parity["passed"] and {run["backend"] for run in parity["runs"]} == {"onnxruntime"}
    components = read_manifest(tmp_path / "bundle").data.components
    assert list(components) == ["vision", "embedding", "decoder_0", "decoder_1", "score"]
    assert [tensor.name for tensor in components["decoder_1"].inputs][:2] == ["hidden_states", "position_ids"]

    for backend in ("onnxruntime", "torch"):
        with Bundle.open(tmp_path / "bundle", backend) as bundle:
            pixels = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
            answer = bundle.generate(pixels, [5, 99, 7], max_new_tokens=4, ignore_stop=True, return_logits=True)
            assert answer.visual_tokens is not None and answer.visual_tokens.shape == (12, 32)
            if backend == "onnxruntime":
                first = answer
    assert first.logits is not None and answer.logits is not None
    np.testing.assert_allclose(first.logits, answer.logits, rtol=1e-4, atol=1e-5)  # float32, another order of sums
    assert first.tokens.tolist() == answer.tokens.tolist()
