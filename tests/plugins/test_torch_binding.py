"""anchored_attention_cuda without a GPU: what it hands to the C interface, run by the kernel compiled for the CPU."""

from __future__ import annotations

import ctypes
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
