"""The decoders beside InternLM2, Qwen2 and Llama: against Hugging Face's own causal models on the original names, and
through the whole export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import va_export
from refusals import refused
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from va_export.checkpoint.files import Checkpoint
from va_export.models import family_for
from va_export.models.internvl2.tiny import write_tiny_checkpoint
from va_export.models.parameters import load_model

QWEN2: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
}
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "num_key_value_heads": 1,
}
INTERNVIT_6B: dict[str, Any] = {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False}
CAUSAL = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Decoder → a tiny checkpoint with it; Llama's, like the 40B model, has the large vision tower's norms."""
    directory = tmp_path_factory.mktemp("decoders")
    return {
        "qwen2": write_tiny_checkpoint(directory / "qwen2", llm_config=QWEN2),
        "llama": write_tiny_checkpoint(directory / "llama", llm_config=LLAMA, vision_config=INTERNVIT_6B),
    }


@pytest.mark.parametrize("decoder", CAUSAL)
def test_logits_are_those_of_the_plain_causal_model(decoder: str, checkpoints: dict[str, Path]) -> None:
    """The checkpoint's `language_model.*` tensors are the causal model's own parameters, so that it can be loaded with
    Hugging Face alone: no weight map, no replaced rotary embedding, its own attention."""
    checkpoint = Checkpoint.open(checkpoints[decoder])
    configuration, causal_model = CAUSAL[decoder]
    llm = {key: value for key, value in checkpoint.config["llm_config"].items() if key != "rope_theta"}
    llm["rope_parameters"] = {"rope_type": "default", "rope_theta": checkpoint.config["llm_config"]["rope_theta"]}
    plain = causal_model(configuration(**llm)).eval()
    weights = load_file(checkpoints[decoder] / "model.safetensors")
    prefix = "language_model."
    plain.load_state_dict({n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}, strict=True)

    family = family_for(checkpoint.config)
    ours = load_model(family, family.spec_from_checkpoint(checkpoint), checkpoint)
    ids = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, actual = plain(ids).logits, ours(input_ids=ids).logits
    assert float(expected.std()) > 0.5
    # float32: two layers of sums over at most 256 terms, taken in another order by another attention kernel
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_biases_of_qwen2_reach_the_queries(checkpoints: dict[str, Path]) -> None:
    checkpoint = Checkpoint.open(checkpoints["qwen2"])
    family = family_for(checkpoint.config)
    model: Any = load_model(family, family.spec_from_checkpoint(checkpoint), checkpoint)
    attention = model.model.language_model.layers[1].self_attn
    for part in ("q", "k", "v"):
        bias = checkpoint.tensor(f"language_model.model.layers.1.self_attn.{part}_proj.bias")
        assert torch.equal(getattr(attention, f"{part}_proj").bias, bias) and float(bias.abs().min()) > 0
    assert attention.o_proj.bias is None


@pytest.mark.parametrize(("decoder", "precision"), [("qwen2", "fp16"), ("llama", "fp32"), ("llama", "fp16")])
def test_exports_and_passes_parity(decoder: str, precision: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    options = ("--precision", precision, "--onnx-only", "--latency-iterations", 0, "--new-tokens", 3, "--frames", 2)
    outcome = va_export("--model", checkpoints[decoder], "--output", tmp_path / "b", "--subspaces", 2, *options)
    assert outcome.code == 0, outcome.stderr
    parity = json.loads((tmp_path / "b" / "parity.json").read_text())
    assert parity["passed"] and parity["precision"] == precision
    assert [run["attention"] for run in parity["runs"]] == ["plugin", "native"]
    stages = {check["stage"] for run in parity["runs"] for check in run["checks"]}
    assert stages == {"visual_tokens", "sharing_score", "score_graph", "prefill_logits", "decode_logits"}


@pytest.mark.parametrize(("llm", "key", "named"), [
    ({**QWEN2, "use_sliding_window": True}, "use_sliding_window", [True]),
    ({**LLAMA, "mlp_bias": True}, "mlp_bias", [True]),
    ({**LLAMA, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling", ["llama3"]),
    ({"architectures": ["Qwen3MoeForCausalLM"]}, "architectures", ["Qwen3MoeForCausalLM", "experts"]),
    ({"architectures": ["GptOssForCausalLM"]}, "architectures", ["GptOssForCausalLM", "experts"]),
    ({"architectures": ["InternLM3ForCausalLM"]}, "architectures", ["InternLM3ForCausalLM"]),
])  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(
    llm: dict[str, Any], key: str, named: list[object], tmp_path: Path
) -> None:
    with refused(f"config.json: llm_config.{key}", *named):
        write_tiny_checkpoint(tmp_path, llm_config=llm)
