"""anchored_attention_cuda: what it refuses, and (on a GPU) what it computes, against float64."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from refusals import refused  # noqa: E402

from va_export.anchor.attention import anchored_attention  # noqa: E402
from va_export.native import anchored_attention as binding  # noqa: E402
from va_export.native.anchored_attention import anchored_attention_cuda  # noqa: E402

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU: torch.cuda is not available")


def tensors(*shapes: tuple[int, ...], dtype: Any = torch.float16) -> list[Any]:
    return [torch.zeros(shape, dtype=dtype) for shape in shapes]


def test_cpu_tensors_are_sent_to_the_eager_function() -> None:
    with refused("anchored_attention_cuda", "query", "cpu") as caught:
        anchored_attention_cuda(*tensors((1, 2, 3, 8), (1, 2, 3, 8), (1, 2, 3, 8)))
    assert "va_export.anchor.attention.anchored_attention" in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (tensors((1, 3, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8)), [(1, 3, 4, 8)]),
        (tensors((1, 2, 4, 8), (1, 2, 4, 16), (1, 2, 4, 8)), [(1, 2, 4, 16)]),
        (tensors((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 5, 8)), [(1, 2, 5, 8)]),
        (tensors((1, 2, 4, 257), (1, 2, 4, 257), (1, 2, 4, 8)), ["query", (1, 2, 4, 257)]),
        (tensors((2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8)), ["query", (2, 4, 8)]),
        (tensors((1, 2, 4, 8), (1, 2, 0, 8), (1, 2, 0, 8)), ["key", (1, 2, 0, 8)]),
        ([x.mT for x in tensors((1, 2, 8, 4), (1, 2, 8, 4), (1, 2, 8, 4))], ["query", (1, 2, 4, 8), (64, 32, 1, 4)]),
        (tensors((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8), dtype=torch.float64), ["query", "float64"]),
        ([*tensors((1, 2, 4, 8), (1, 2, 4, 8)), torch.zeros(1, 2, 4, 8)], ["value", "float32", "query", "float16"]),
        ([torch.zeros(1, 2, 4, 8, requires_grad=True)] * 3, ["query", "gradient"]),
        ([*tensors((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8)), torch.zeros(1, 5)], ["key_log_gain", (1, 5)]),
        (
            [*tensors((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8)), None, torch.zeros(1, 4).half()],
            ["value_gain", "float16"],
        ),
        (
            [*tensors((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8)), None, None, torch.tensor([1.0])],
            ["kv_length", "float32"],
        ),
    ],
)
def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch, given: list[Any], named: list[object]) -> None:
    monkeypatch.setattr(binding, "_check_devices", lambda *tensors: None)
    with refused("anchored_attention_cuda", *named):
        anchored_attention_cuda(*given)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_scale_must_be_positive(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    monkeypatch.setattr(binding, "_check_devices", lambda *tensors: None)
    with refused("anchored_attention_cuda", scale):
        anchored_attention_cuda(*tensors((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8)), scale=scale)


GPU_CASES = [  # batch, query heads, kv heads, q_len, kv_len, head_dim, value_head_dim
    (1, 1, 1, 1, 1, 8, 8),
    (2, 8, 2, 111, 111, 64, 64),
    (1, 28, 4, 65, 989, 128, 128),
    (3, 7, 1, 1, 1025, 80, 96),
    (1, 4, 4, 300, 33, 96, 40),
    (1, 2, 1, 129, 257, 256, 256),
]


@pytest.fixture(params=["simple", "mma_sync", "tensor_core"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which kernel the library takes where both serve; the test runs with either."""
    name: str = request.param
    monkeypatch.setenv("VA_EXPORT_ATTENTION_KERNEL", name)
    return name


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("shape", GPU_CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("is_causal", [True, False])
def test_gpu_matches_float64(shape: tuple[int, ...], dtype: Any, is_causal: bool, kernel: str) -> None:
    batch, query_heads, kv_heads, q_len, kv_len, head_dim, value_head_dim = shape
    torch.manual_seed(0)
    query = torch.randn(batch, q_len, query_heads, head_dim).to(dtype).transpose(1, 2)
    key = torch.randn(batch, kv_heads, kv_len, head_dim).to(dtype)
    value = torch.randn(batch, kv_heads, kv_len, value_head_dim).to(dtype)
    score = torch.rand(batch, kv_len)
    key_log_gain, value_gain = (9.5 * score).log1p(), 1 + 2.5 * score
    kv_length = torch.arange(batch) * (kv_len // 3)  # 0 valid keys in the first row of a batch
    kv_length = kv_len - kv_length if batch == 1 else kv_length
    for row, length in enumerate(kv_length.tolist()):
        key[row, :, length:], value[row, :, length:] = float("nan"), float("inf")
    given = (query, key, value, key_log_gain, value_gain, kv_length)
    actual = anchored_attention_cuda(*(x.cuda() for x in given), is_causal=is_causal).double().cpu()
    wide = (query.double(), key.double(), value.double(), key_log_gain.double(), value_gain.double(), kv_length)
    expected = anchored_attention(*wide, is_causal=is_causal)
    magnitude = anchored_attention(wide[0], wide[1], wide[2].abs(), *wide[3:], is_causal=is_causal)
    weights = 1.0 if kernel == "simple" else 1.25  # tensor cores take the softmax weights in 16 bits too
    tolerance = {torch.float32: 1e-5, torch.float16: weights * 2**-10, torch.bfloat16: weights * 2**-7}[dtype]
    assert torch.all((actual - expected).abs() <= tolerance * magnitude + 1e-7)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.usefixtures("kernel")
def test_gpu_is_deterministic_and_can_be_captured() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 8, 500, 64, device="cuda", dtype=torch.float16) for _ in range(3))
    gains = torch.rand(2, 500, device="cuda")
    first = anchored_attention_cuda(query, key, value, gains, gains)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = anchored_attention_cuda(query, key, value, gains, gains)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(first, captured)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_gpu_compiles_into_one_graph(mode: str) -> None:
    """With "reduce-overhead" PyTorch captures the launch in a CUDA graph, workspace included."""
    torch.manual_seed(0)
    query = torch.randn(2, 1, 8, 64, device="cuda", dtype=torch.float16).transpose(1, 2)
    key, value = (torch.randn(2, 2, 900, 64, device="cuda", dtype=torch.float16) for _ in range(2))

    def layer(query: Any, key: Any, value: Any, kv_length: Any) -> Any:
        return 2 * anchored_attention_cuda(query, key, value, kv_length=kv_length).transpose(1, 2).flatten(2)

    compiled = torch.compile(layer, fullgraph=True, mode=mode)
    for length in (900, 33, 1, 500):  # the later calls replay
        kv_length = torch.tensor([length, 900], device="cuda")
        expected = layer(query, key, value, kv_length)
        torch.testing.assert_close(compiled(query, key, value, kv_length).clone(), expected, rtol=0, atol=0)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("is_padded", [False, True])
def test_gpu_generates_on_the_kernel(cache: str | None, is_padded: bool) -> None:
    """A Hugging Face model with "anchored_cuda" against the same with "anchored", both in float16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from va_export.anchor import anchors, use_anchored_attention

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "vocab_size": 311}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=0.1)).cuda().half().eval()
    ids, mask = torch.randint(1, 311, (2, 211)).cuda(), torch.ones(2, 211, dtype=torch.int64).cuda()
    mask[1, : 40 * is_padded] = 0
    score, forced = torch.rand(2, 211).cuda(), torch.randint(1, 311, (2, 6)).cuda()

    def follow(tokens: Any, scores: Any) -> Any:
        """Both models are led along the same tokens, for two logits may be nearly equal."""
        return torch.full_like(scores, -float("inf")).scatter(1, forced[:, tokens.shape[1] - 211, None], 0.0)

    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "output_logits": True}
    options |= {"return_dict_in_generate": True, "cache_implementation": cache, "disable_compile": True}
    options["logits_processor"] = [follow]
    results = []
    for implementation in ("anchored", "anchored_cuda"):
        with anchors(use_anchored_attention(model, implementation), (9.5 * score).log1p(), 1 + 2.5 * score):
            results.append(model.generate(ids, **options).logits)
    assert len(results[0]) == 6
    for expected, ours in zip(*results, strict=True):
        # float16 models that round in other places: 3 layers with about 8 roundings of 2^-11 of the largest number.
        tolerance = 3 * 8 * 2**-11 * float(expected.abs().max())
        torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance)
