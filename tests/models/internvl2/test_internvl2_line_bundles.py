"""Exported graphs of the line's other decoders reproduce golden data: Phi-3 with LongRoPE, Qwen2.5, Qwen3 with tied
embeddings, the latter in transformers' layout too; and LongRoPE changes its list where decoding crosses the original
length."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from asked_twice import asked_twice
from command_line import va_export
from transformers_layout import write_in_transformers_layout

from va_export.runtime.bundle import Bundle

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
CASES = (
    *(("internvl2_4b_tiny", "original"), ("internvl3_tiny", "original")),
    *(("internvl3_5_tiny_not_official", "original"), ("internvl3_5_tiny_not_official", "class")),
)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    name, layout = request.param
    return name, layout


@pytest.fixture(scope="module")
def name(case: tuple[str, str]) -> str:
    return case[0]


@pytest.fixture(scope="module")
def golden(name: str) -> Mapping[str, np.ndarray]:
    with np.load(GOLDEN / name / "golden.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


@pytest.fixture(scope="module")
def bundle(case: tuple[str, str], golden: Mapping[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    name, layout = case
    directory = tmp_path_factory.mktemp(name) / "bundle"
    source = GOLDEN / name
    if layout != "original":
        written = directory.with_name("checkpoint")
        source = write_in_transformers_layout(source, written, layout, int(golden["image_token_id"]))
    options = ("--image-token-id", int(golden["image_token_id"]), "--subspaces", 4, "--new-tokens", 2)
    outcome = va_export(
        "--model", source, "-o", directory, "--fp32", "--onnx-only", "--latency-iterations", 0, *options
    )
    assert outcome.code == 0, outcome.stderr
    return directory


@pytest.mark.parametrize("attention", ["plugin", "native"])
def test_graphs_are_the_golden_run(attention: str, bundle: Path, golden: Mapping[str, np.ndarray]) -> None:
    """float32 on both sides; sums in another order, values of order 1 to 5."""
    with Bundle.open(bundle, attention=attention) as opened:
        found = opened.generate(
            pixel_values=golden["pixel_values"],
            input_ids=golden["input_ids"],
            forced_tokens=np.append(golden["tokens"], 0),
            key_log_gain=golden["key_log_gain_official"],
            value_gain=golden["gain_v"],
            return_logits=True,
        )
        gains = golden["key_log_gain_official"], golden["gain_v"]
        fed = np.append(golden["tokens"], 0)
        again = asked_twice(opened, golden["input_ids"], {"pixel_values": golden["pixel_values"]}, gains, fed)
    np.testing.assert_allclose(found.visual_tokens, golden["visual_tokens"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(found.logits, golden["decode_logits"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(again, golden["decode_logits"], rtol=0, atol=2e-5)


def test_decoding_across_the_original_length_changes_the_factors(name: str, bundle: Path) -> None:
    """A prompt of 4 095 tokens takes the short factors; the first step after it, at position 4 095, still does; the
    second, at 4 096, takes the long ones, over keys that keep theirs. PyTorch says the same, and a prompt of 4 096
    tokens, still short, says what stepping there said."""
    if name != "internvl2_4b_tiny":
        pytest.skip("this decoder has one list of frequencies")
    prompt = np.random.default_rng(0).integers(3, 700, 4095)[None]
    logits = {}
    for backend in ("onnxruntime", "torch"):
        with Bundle.open(bundle, backend) as opened:
            answer = opened.generate(input_ids=prompt, forced_tokens=[5, 6, 7, 8], return_logits=True)
            assert answer.logits is not None
            logits[backend] = answer.logits
            assert opened.manifest.data.model.text.whole_from == 4096  # nor may a longer prompt go in chunks
            if backend == "onnxruntime":
                longer = opened.generate(input_ids=np.append(prompt, 5)[None], forced_tokens=[6, 7], return_logits=True)
    # float32 through two layers of 4 096 keys
    np.testing.assert_allclose(logits["onnxruntime"], logits["torch"], rtol=0, atol=1e-4)
    assert longer.logits is not None
    np.testing.assert_allclose(longer.logits[0], logits["onnxruntime"][1], rtol=0, atol=1e-4)
