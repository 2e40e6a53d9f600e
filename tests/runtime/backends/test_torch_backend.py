"""The PyTorch backend computes with the bundle's own weights."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refused

from va_export.checkpoint.files import Checkpoint
from va_export.models import family_named
from va_export.models.parameters import load_model
from va_export.runtime.backends.pytorch import TorchBackend
from va_export.runtime.bundle import Bundle


def test_weights_are_those_of_the_checkpoint(golden_bundle: Callable[[str], Path], golden_checkpoint: Path) -> None:
    family = family_named("internvl2")
    checkpoint = Checkpoint.open(golden_checkpoint)
    expected = load_model(family, family.spec_from_checkpoint(checkpoint), checkpoint).state_dict()
    for precision, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
        with Bundle.open(golden_bundle(precision), "torch") as bundle:
            assert isinstance(bundle.backend, TorchBackend)
            state = bundle.backend._model.state_dict()
            assert set(state) == set(expected)
            for name, tensor in state.items():
                assert tensor.dtype == dtype and torch.equal(tensor, expected[name].to(dtype)), name


def test_agrees_with_onnxruntime(tiny_bundle: Path) -> None:
    random = np.random.default_rng(0)
    pixels = random.normal(size=(2, 3, 112, 112)).astype(np.float32)
    results = []
    for backend in ("onnxruntime", "torch"):
        with Bundle.open(tiny_bundle, backend) as bundle:
            ids = bundle.prompt("What moves?", 2)
            results.append(bundle.generate(pixels, ids, forced_tokens=[1, 2, 3], return_logits=True))
    one, other = results
    for name in ("visual_tokens", "logits"):
        a, b = getattr(one, name), getattr(other, name)
        assert np.abs(a - b).max() < 0.02 * np.abs(b).max(), name


def test_a_longer_text_prompt_without_frames(tiny_bundle: Path) -> None:
    with Bundle.open(tiny_bundle, "torch") as bundle:
        result = bundle.generate(input_ids=np.arange(50), max_new_tokens=3, ignore_stop=True, return_logits=True)
    assert result.logits is not None and result.logits.shape == (3, 263) and np.isfinite(result.logits).all()


@pytest.mark.parametrize("module", ["torch", "transformers"])
def test_without_pytorch_the_extra_is_named(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with refused("backend torch", module) as caught:
        Bundle.open(tiny_bundle, "torch")
    assert caught.value.fix is not None and "va-export[export]" in caught.value.fix
