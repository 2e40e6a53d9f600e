"""anchored_attention_cuda without a GPU: what it hands to the C interface, run by the kernel compiled for the CPU."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from va_export.anchor.attention import anchored_attention  # noqa: E402
from va_export.native import anchored_attention as binding  # noqa: E402
from va_export.native.anchored_attention_params import AnchoredAttentionParams  # noqa: E402

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.fixture
def on_host(host_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes CPU tensors and launches on the CPU; everything between stays as it is."""

    def launch(params: AnchoredAttentionParams, device: object) -> None:
        assert host_library.va_anchored_attention_launch(ctypes.byref(params), None) == 0

    monkeypatch.setattr(binding, "_check_devices", lambda *tensors: None)
    monkeypatch.setattr(binding, "_launch", launch)


def assert_same(options: dict[str, Any], *tensors: Any) -> Any:
    actual = binding.anchored_attention_cuda(*tensors, **options)
    wide = [x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in tensors]
    expected = anchored_attention(*wide, **options)
    torch.testing.assert_close(
        actual.double(), expected, rtol=0, atol=TOLERANCE[tensors[0].dtype] * expected.abs().max()
    )
    return actual


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("is_causal", [True, False])
def test_packed_heads_and_tensor_lengths(on_host: None, dtype: Any, is_causal: bool) -> None:
    torch.manual_seed(0)
    query = torch.randn(2, 9, 6, 24).to(dtype).transpose(1, 2)  # (B, S, H, D) seen as (B, H, S, D)
    key, value = (torch.randn(2, 21, 2, width).to(dtype).transpose(1, 2) for width in (24, 40))
    key_log_gain = torch.rand(1, 21).log1p().expand(2, 21)  # batch stride 0
    value_gain = 1 + torch.rand(2, 42)[:, ::2]  # not contiguous: copied
    kv_length = torch.tensor([21, 13])
    out = assert_same({"is_causal": is_causal}, query, key, value, key_log_gain, value_gain, kv_length)
    assert out.dtype == dtype
    assert out.transpose(1, 2).is_contiguous()


def test_defaults_are_plain_attention(on_host: None) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 7, 16) for _ in range(3))
    out = assert_same({}, query, key, value)
    plain = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(out, plain, rtol=0, atol=1e-5)


def test_one_length_for_the_batch_and_a_scale(on_host: None) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 1, 8), torch.randn(2, 4, 12, 8), torch.randn(2, 4, 12, 8)
    assert_same({"scale": 0.7}, query, key, value, None, None, 5)


def random_call() -> tuple[Any, ...]:
    torch.manual_seed(0)
    query = torch.randn(2, 5, 4, 16).transpose(1, 2)
    key, value = torch.randn(2, 2, 9, 16), torch.randn(2, 2, 9, 24)
    return query, key, value, torch.rand(2, 9), torch.rand(2, 9), torch.tensor([9, 4])


@pytest.mark.parametrize("given", [6, 3], ids=["all inputs", "without gains and lengths"])
def test_the_operator_is_what_pytorch_believes_of_it(on_host: None, given: int) -> None:
    """Schema, no mutated input, and shapes, strides and types without running it (torch.library.opcheck)."""
    tensors = [*random_call()[:given], *[None] * (6 - given)]
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.va_export.anchored_attention_cuda, (*tensors, 0.25, True), test_utils=checks)


@pytest.mark.parametrize("given", [6, 3], ids=["all inputs", "without gains and lengths"])
def test_it_compiles_into_one_graph(on_host: None, given: int) -> None:
    tensors = random_call()[:given]

    def layer(*inputs: Any) -> Any:
        return 2 * binding.anchored_attention_cuda(*inputs).transpose(1, 2).flatten(2)

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), layer(*tensors), rtol=0, atol=0)


def test_launches_without_gains_share_gains_of_no_effect(on_host: None) -> None:
    query, key, value, *_ = random_call()
    binding._NEUTRAL.clear()
    for length in (9, 5, 9):
        binding.anchored_attention_cuda(query, key[:, :, :length], value[:, :, :length])
    assert sorted((gain, size) for gain, size, _ in binding._NEUTRAL) == [(0.0, 8), (0.0, 16), (1.0, 8), (1.0, 16)]
    for (gain, size, _), tensor in binding._NEUTRAL.items():
        assert tensor.shape == (size,) and bool((tensor == gain).all()), "no launch writes them"


def test_a_hugging_face_model_generates_on_the_kernel(
    on_host: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The attention "anchored_cuda" down to the kernel's own source, against the attention "anchored"."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from va_export.anchor import anchors, use_anchored_attention

    (tmp_path / "libva_plugins.so").touch()  # asked for by name; the launch is the emulated one
    monkeypatch.setenv("VA_EXPORT_PLUGIN_LIBRARY", str(tmp_path / "libva_plugins.so"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 61}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=0.3)).eval()
    ids, mask = torch.randint(1, 61, (2, 11)), torch.ones(2, 11, dtype=torch.int64)
    mask[1, :3] = 0
    score = torch.rand(2, 11)
    options = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "output_logits": True}
    options |= {"return_dict_in_generate": True, "cache_implementation": "static", "disable_compile": True}
    results = []
    for implementation in ("anchored", "anchored_cuda"):
        with anchors(use_anchored_attention(model, implementation), (9.5 * score).log1p(), 1 + 2.5 * score):
            results.append(model.generate(ids, **options))
    for ours, expected in zip(results[1].logits, results[0].logits, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert torch.equal(results[0].sequences, results[1].sequences)
