"""The tensor-core kernels' own source, run on the CPU by the emulator, against float64 and PyTorch's float16."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import numpy as np
import pytest
from attention_case import (
    Array,
    Case,
    Inputs,
    as_float64,
    encode,
    launcher,
    random_inputs,
    reference,
    run_on_host,
    scale_of,
)

KERNEL_VARIABLE = "VA_EXPORT_ATTENTION_KERNEL"

# As in test_anchored_attention_kernel.py: the weights' rounding and the result's.
TOLERANCE = {"float16": 2 * 2.0**-11 + 4e-6, "bfloat16": 2 * 2.0**-8 + 4e-6}
LARGE_SHARED_MEMORY, SMALL_SHARED_MEMORY = 80, 86  # architectures, for the two tiles of a prefill


@pytest.fixture
def gpu(host_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[ctypes.CDLL]:
    """The kernels on the CPU, with a GPU of small caches, so that plans have sections; set back afterwards."""
    monkeypatch.setenv(KERNEL_VARIABLE, "tensor_core")
    host_library.simt_set_gpu(LARGE_SHARED_MEMORY, 4, 20_000)
    yield host_library
    host_library.simt_set_gpu(80, 4, 1 << 20)


@pytest.mark.parametrize("chosen", [None, "simple", "tensor-core"])
def test_tensor_cores_are_asked_for_by_name(
    host_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, chosen: str | None
) -> None:
    case = Case(40, 90, query_heads=2, dtype="float16")
    inputs = random_inputs(case)

    def result(kernel: str | None) -> Array:
        if kernel is None:
            monkeypatch.delenv(KERNEL_VARIABLE, raising=False)
        else:
            monkeypatch.setenv(KERNEL_VARIABLE, kernel)
        return run_on_host(launcher(host_library), case, inputs)

    np.testing.assert_array_equal(result(chosen), result("simple"))
    assert not np.array_equal(result(chosen), result("tensor_core"))  # they round the weights differently


def assert_right(library: ctypes.CDLL, case: Case, inputs: Inputs | None = None, has_workspace: bool = False) -> Array:
    inputs = inputs or random_inputs(case)
    expected, magnitude = reference(case, inputs)
    actual = run_on_host(launcher(library, has_workspace=has_workspace), case, inputs)
    error = np.abs(actual - expected)
    assert np.all(error <= TOLERANCE[case.dtype] * magnitude + 6e-8), np.max(error / (magnitude + 1e-4))
    return actual


EDGES = [
    Case(q_len, kv_len, query_heads=1, dtype="float16", is_causal=is_causal)
    for q_len, kv_len, is_causal in (
        (17, 17, True),
        (63, 65, True),
        (64, 64, True),
        (65, 63, True),
        (127, 128, True),
        (128, 129, False),
        (129, 127, True),
        (17, 191, True),
        (33, 193, False),
        (140, 20, True),
    )
]
GROUPS = [
    Case(23, 70, batch=2, query_heads=heads, kv_heads=kv_heads, dtype=dtype, kv_length=(70, length))
    for heads, kv_heads, dtype, length in (
        (2, 2, "float16", 0),
        (8, 2, "bfloat16", 33),
        (7, 1, "float16", 64),
        (8, 1, "float16", 1),
    )
]
WIDTHS = [
    Case(40, 100, query_heads=2, head_dim=width, value_head_dim=value_width, dtype=dtype, packed_heads=packed)
    for width, value_width, dtype, packed in (
        (8, None, "float16", False),
        (64, 128, "bfloat16", True),
        (80, None, "float16", True),
        (96, None, "float16", False),
        (104, 72, "bfloat16", False),
        (128, None, "float16", True),
        (128, 40, "float16", False),
    )
]
GAINS = [
    Case(30, 90, batch=2, gains=gains, dtype=dtype, is_causal=is_causal)
    for gains, dtype, is_causal in (
        ("none", "float16", True),
        ("wide", "float16", True),
        ("wide", "bfloat16", False),
        ("zero", "float16", True),
    )
]
SCALES = [Case(25, 70, head_dim=16, scale=8.0, dtype="float16"), Case(25, 70, head_dim=16, scale=1e-7, dtype="float16")]


@pytest.mark.parametrize("case", [*EDGES, *GROUPS, *WIDTHS, *GAINS, *SCALES], ids=str)
def test_prefill_matches_float64(gpu: ctypes.CDLL, case: Case) -> None:
    assert_right(gpu, case)


@pytest.mark.parametrize("case", [WIDTHS[2], WIDTHS[4], WIDTHS[5], GROUPS[0], EDGES[6]], ids=str)
def test_prefill_of_gpus_with_little_shared_memory(gpu: ctypes.CDLL, case: Case) -> None:
    gpu.simt_set_gpu(SMALL_SHARED_MEMORY, 4, 20_000)
    assert_right(gpu, case)


DECODE = [
    Case(1, 1, dtype="float16"),
    Case(1, 63, query_heads=8, dtype="float16"),
    Case(1, 300, batch=2, query_heads=8, kv_heads=2, head_dim=128, dtype="float16", kv_length=(300, 0)),
    Case(1, 257, batch=2, query_heads=28, kv_heads=4, head_dim=80, dtype="bfloat16", kv_length=(256, 65)),
    Case(16, 130, query_heads=7, head_dim=96, value_head_dim=64, dtype="float16"),
    Case(5, 3, query_heads=3, dtype="float16"),
    Case(9, 200, query_heads=4, gains="wide", dtype="float16", packed_heads=True),
    Case(4, 200, batch=2, query_heads=4, gains="zero", dtype="bfloat16"),
]


@pytest.mark.parametrize("sm_count", [1, 7, 132])
@pytest.mark.parametrize("case", DECODE, ids=str)
def test_decode_matches_float64_whatever_the_splits(gpu: ctypes.CDLL, case: Case, sm_count: int) -> None:
    gpu.simt_set_gpu(LARGE_SHARED_MEMORY, sm_count, 1 << 20)
    split = assert_right(gpu, case, has_workspace=True)
    if sm_count != 132:
        return  # too few multiprocessors for splits in some cases
    whole = assert_right(gpu, case, has_workspace=False)  # no workspace: no splits
    if case.kv_len > 128:
        assert not np.array_equal(split, whole)  # the splits were there


@pytest.mark.parametrize("gain", [1e-6, 1e-3, 1.0, 100.0, 1e4])
@pytest.mark.parametrize("value_gain", [1e-6, 0.0, 1.0, 1e4])
def test_gains_of_any_size_in_every_tile(gpu: ctypes.CDLL, gain: float, value_gain: float) -> None:
    """Half of the tiles have this gain and half have 1: folded and guarded tiles meet in one row, in both orders."""
    for first in (0, 64):
        case = Case(20, 128, query_heads=1, dtype="float16", gains="none", is_causal=False)
        inputs = random_inputs(case)
        inputs.value[:] = as_float64(encode(inputs.value * min(1.0, 1 / (value_gain or 1.0)), "float16"), "float16")
        inputs.key_log_gain[:, first : first + 64] = np.float32(np.log(gain))
        inputs.value_gain[:, first : first + 64] = np.float32(value_gain)
        assert_right(gpu, case, inputs)


def test_rows_without_keys_are_zero(gpu: ctypes.CDLL) -> None:
    case = Case(40, 20, batch=2, kv_length=(20, 0), dtype="float16")
    actual = assert_right(gpu, case)
    assert not actual[0, :, :20].any()
    assert np.all(actual[0, :, 20:].any(axis=-1))
    assert not actual[1].any()


def test_a_visible_nan_is_not_hidden(gpu: ctypes.CDLL) -> None:
    for q_len in (4, 20):
        case = Case(q_len, 70, query_heads=1, dtype="float16")
        inputs = random_inputs(case)
        inputs.key[0, 0, 67 if q_len == 4 else 60] = np.nan
        actual = run_on_host(launcher(gpu), case, inputs)
        seen = np.arange(q_len) + 70 - q_len >= (67 if q_len == 4 else 60)
        assert np.all(np.isnan(actual[0, 0, seen]))
        assert np.all(np.isfinite(actual[0, 0, ~seen]))


@pytest.mark.parametrize("schedule", [1, 2])
@pytest.mark.parametrize("case", [GROUPS[1], DECODE[2]], ids=str)
def test_result_does_not_depend_on_thread_order(gpu: ctypes.CDLL, case: Case, schedule: int) -> None:
    inputs = random_inputs(case)
    in_order = run_on_host(launcher(gpu, 0, has_workspace=True), case, inputs)
    assert np.array_equal(run_on_host(launcher(gpu, schedule, has_workspace=True), case, inputs), in_order)


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [(80, (96, 96, 64)), (80, (1, 300, 128)), (80, (24, 200, 128)), (90, (96, 96, 64)), (90, (24, 200, 128))],
    ids=str,
)
def test_error_is_at_most_that_of_pytorchs_float16_attention(
    gpu: ctypes.CDLL, architecture: int, shape: tuple[int, int, int]
) -> None:
    """Root mean square error against float64, gains in the bias and in the values, all in float16 as PyTorch does."""
    torch = pytest.importorskip("torch")
    q_len, kv_len, head_dim = shape
    gpu.simt_set_gpu(architecture, 4, 20_000)  # 90: the Hopper kernel
    case = Case(q_len, kv_len, query_heads=4, kv_heads=2, head_dim=head_dim, dtype="float16")
    inputs = random_inputs(case)
    expected, _ = reference(case, inputs)
    ours = run_on_host(launcher(gpu, has_workspace=True), case, inputs)
    query, key, value = (torch.tensor(x, dtype=torch.float16) for x in (inputs.query, inputs.key, inputs.value))
    key, value = key.repeat_interleave(2, dim=1), value.repeat_interleave(2, dim=1)
    visible = torch.ones(q_len, kv_len, dtype=torch.bool).tril(kv_len - q_len)
    bias = torch.tensor(inputs.key_log_gain, dtype=torch.float16)[:, None, None].masked_fill(~visible, -torch.inf)
    logits = query @ key.mT * scale_of(case) + bias
    gained = value * torch.tensor(inputs.value_gain, dtype=torch.float16)[:, None, :, None]
    theirs = (logits.softmax(dim=-1) @ gained).double().numpy()
    assert np.sqrt(np.mean((ours - expected) ** 2)) <= 1.5 * np.sqrt(np.mean((theirs - expected) ** 2))
    assert np.max(np.abs(ours - expected)) <= 1.5 * np.max(np.abs(theirs - expected))
