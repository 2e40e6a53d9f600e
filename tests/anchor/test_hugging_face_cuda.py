"""The attention named "anchored_cuda" with the eager function in the kernel's place: what it hands to the kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from refusals import refused
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, StaticCache

from va_export.anchor import anchors, hugging_face, hugging_face_cuda, use_anchored_attention
from va_export.anchor.attention import anchored_attention
from va_export.native import LIBRARY_VARIABLE
from va_export.native import anchored_attention as binding
from va_export.native.kernels import DECODE, PREFILL
from va_export.native.selftest import prove
from va_export.native.selftest.documents import AttentionShape

PROMPT = 13
TEXT = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": None,
    "initializer_range": 0.3,  # large enough for attention that is not flat
}


class Kernel:
    """The eager function behind the kernel's signature; it holds its callers to what the kernel takes."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *rest: Tensor | None, **options: Any) -> Tensor:
        key_log_gain, value_gain, kv_length = rest
        batch, kv_len = key.shape[0], key.shape[2]
        for gain in (key_log_gain, value_gain):
            assert gain is None or (gain.shape == (batch, kv_len) and gain.dtype == torch.float32)
        assert kv_length is None or (kv_length.shape == (batch,) and kv_length.dtype == torch.int64)
        assert kv_length is None or kv_length.is_contiguous()
        assert query.stride(3) == key.stride(3) == value.stride(3) == 1
        self.calls.append(
            {"query": query, "key_log_gain": key_log_gain, "value_gain": value_gain, "kv_length": kv_length}
        )
        output = anchored_attention(query, key, value, key_log_gain, value_gain, kv_length, **options)
        return output.transpose(1, 2).contiguous().transpose(1, 2)  # as the kernel lays it out


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(binding, "anchored_attention_cuda", kernel)
    monkeypatch.setattr(hugging_face, "prove_kernels", lambda _: None)
    library = tmp_path / "libva_plugins.so"
    library.touch()  # asked for by name, and never loaded
    monkeypatch.setenv(LIBRARY_VARIABLE, str(library))
    return kernel


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**TEXT)).double().eval()


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(1, 61, (2, PROMPT), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def gains() -> tuple[Tensor, Tensor]:
    """(key_log_gain, value_gain), each [2, PROMPT]."""
    score = torch.rand(2, PROMPT, generator=torch.Generator().manual_seed(2)) * (torch.arange(PROMPT) % 3 > 0)
    return torch.log1p(9.5 * score), 1 + 2.5 * score


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def padded(ids: Tensor) -> tuple[Tensor, Tensor]:
    """The second row with three positions of padding on its left, and the mask."""
    tokens, mask = ids.clone(), torch.ones_like(ids)
    tokens[1] = torch.cat([torch.zeros(3, dtype=ids.dtype), ids[1, : PROMPT - 3]])
    mask[1, :3] = 0
    return tokens, mask


GENERATIONS = [
    {},
    {"cache_implementation": "static", "disable_compile": True},
    {"prefill_chunk_size": 5},
    {"num_beams": 2},
]


@pytest.mark.parametrize("options", GENERATIONS, ids=str)
@pytest.mark.parametrize("is_padded", [False, True])
def test_generates_what_the_reference_does(
    kernel: Kernel, model: Any, ids: Tensor, gains: tuple[Tensor, Tensor], options: dict[str, Any], is_padded: bool
) -> None:
    tokens, mask = padded(ids) if is_padded else (ids, torch.ones_like(ids))
    common = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "output_logits": True}
    common |= {"return_dict_in_generate": True, **options}

    def generate(implementation: str) -> Any:
        with anchors(use_anchored_attention(model, implementation), *gains):
            return model.generate(tokens, **common)

    expected, ours = generate("anchored"), generate("anchored_cuda")
    torch.testing.assert_close(ours.sequences, expected.sequences)
    for step, reference in zip(ours.logits, expected.logits, strict=True):
        torch.testing.assert_close(step, reference, rtol=1e-6, atol=1e-6)
    assert kernel.calls[0]["value_gain"] is not None
    assert kernel.calls[-1]["value_gain"] is None, "a decode step is plain"


def test_kernels_are_proven_when_they_are_chosen(model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """On the GPU where the model is, or will be: the current one."""
    asked: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(prove, "take_proven_kernels", lambda *arguments: asked.append(arguments))
    library = tmp_path / "libva_plugins.so"
    library.touch()
    monkeypatch.setenv(LIBRARY_VARIABLE, str(library))
    hugging_face_cuda.prove_kernels(model.half())
    shape = AttentionShape("float16", 4, 2, 8, 8, capacity=4096, tuned_length=2048)
    assert asked == [(library, 3, shape, (DECODE, PREFILL))]
    hugging_face_cuda.prove_kernels(model.double())  # which no kernel takes
    assert len(asked) == 1


def test_without_a_cache_and_without_gains(kernel: Kernel, model: Any, ids: Tensor) -> None:
    expected = model(ids, use_cache=False).logits
    ours = use_anchored_attention(model, "anchored_cuda")(ids, use_cache=False).logits
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    call = kernel.calls[0]
    assert call["key_log_gain"] is call["value_gain"] is call["kv_length"] is None
    assert not call["query"].is_contiguous() and call["query"].transpose(1, 2).is_contiguous(), "a view, not a copy"


def test_a_static_cache_says_its_length_and_a_dynamic_one_has_it(kernel: Kernel, model: Any, ids: Tensor) -> None:
    use_anchored_attention(model, "anchored_cuda")
    expected = model(ids).logits
    cache = StaticCache(model.config, max_cache_len=40)
    chunks = [model(chunk, past_key_values=cache).logits for chunk in ids.split([6, 1, 6], dim=1)]
    torch.testing.assert_close(torch.cat(chunks, dim=1), expected, rtol=1e-9, atol=1e-9)
    assert [call["kv_length"].tolist() for call in kernel.calls[2::2]] == [[6, 6], [7, 7], [13, 13]]
    kernel.calls.clear()
    cache = DynamicCache(config=model.config)
    for chunk in ids.split([6, 7], dim=1):
        model(chunk, past_key_values=cache)
    assert all(call["kv_length"] is None for call in kernel.calls)


def test_nothing_is_read_back_from_the_device(kernel: Kernel, model: Any, ids: Tensor) -> None:
    """Under FakeTensorMode any read of a value fails; what the mask function does must not need one."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers.masking_utils import causal_mask_function

    from va_export.anchor.hugging_face_cuda import anchored_cuda_mask

    with FakeTensorMode() as mode:
        offset, mask = mode.from_tensor(torch.tensor(7)), mode.from_tensor(torch.ones(2, 9, dtype=torch.bool))
        valid = anchored_cuda_mask(2, 2, 40, offset, 0, causal_mask_function, mask)
        assert valid is not None and valid.kv_length is not None and valid.padding_log_gain is not None
        assert (valid.kv_length.shape, valid.padding_log_gain.shape) == ((2,), (2, 40))


# What is refused, rather than computed wrongly


def test_other_patterns_are_sent_to_the_reference(kernel: Kernel, ids: Tensor) -> None:
    mistral = MistralForCausalLM(MistralConfig(**TEXT, sliding_window=5)).eval()
    with refused("anchored_cuda") as caught:
        use_anchored_attention(mistral, "anchored_cuda")(ids)
    assert '"anchored"' in (caught.value.fix or "")


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_mask_of_the_callers_own_is_refused(kernel: Kernel, model: Any, ids: Tensor, dtype: Any) -> None:
    use_anchored_attention(model, "anchored_cuda")
    with refused("LlamaAttention"):
        model(ids, attention_mask=torch.ones(2, 1, PROMPT, PROMPT, dtype=dtype))


@pytest.mark.parametrize(
    ("options", "where", "named"),
    [({"output_attentions": True}, "LlamaAttention", ["output_attentions"]),
     ({"softcap": 30.0}, "LlamaAttention", ["softcap"]),
     ({"key_log_gain": torch.zeros(2, 5)}, "anchored_cuda", ["key_log_gain", 5, 13])],
)  # fmt: skip
def test_what_it_does_not_compute_is_refused(
    kernel: Kernel, model: Any, ids: Tensor, options: dict[str, Any], where: str, named: list[object]
) -> None:
    with refused(where, *named):
        use_anchored_attention(model, "anchored_cuda")(ids, **options)


def test_a_missing_library_is_told_when_it_is_chosen(
    model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv(LIBRARY_VARIABLE, str(tmp_path / "absent.so"))
    with refused(tmp_path / "absent.so", LIBRARY_VARIABLE):
        use_anchored_attention(model, "anchored_cuda")
    with refused("use_anchored_attention", "fast"):
        use_anchored_attention(model, "fast")


def test_a_model_on_the_cpu_is_refused_by_the_real_function(
    model: Any, ids: Tensor, monkeypatch: Any, tmp_path: Any
) -> None:
    (tmp_path / "libva_plugins.so").touch()
    monkeypatch.setenv(LIBRARY_VARIABLE, str(tmp_path / "libva_plugins.so"))
    with refused("anchored_attention_cuda", "query", "cpu"):
        use_anchored_attention(model, "anchored_cuda")(ids)


def test_what_says_the_keys_passes_for_a_mask() -> None:
    """`generate` of transformers 5.18 to 5.23 asks every mask to be contiguous; neither end of the range does."""
    from va_export.anchor.hugging_face_cuda import ValidKeys

    keys = ValidKeys(torch.tensor([3]), None)
    assert keys.contiguous() is keys
    assert keys.ndim == 4
