"""The AnchoredAttention kernel's own source, run on the CPU thread by thread, against its definition in float64."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from attention_case import Case, launcher, random_inputs, reference, run_on_host

from va_export.native.anchored_attention_params import AnchoredAttentionParams

# Relative to the sum of the absolute terms of each output: float32 sums of up to ~100 terms, and for 16 bits roundings
# of half a unit in the last place (2^-11 for float16, 2^-8 for bfloat16): one, of the result, in the simple kernel; a
# second one, of the weights, where tensor cores take them.
FLOAT32_SUMS = 4e-6
ROUNDOFF = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}
ROUNDINGS = {"simple": 1, "tensor_core": 2}

LENGTHS = [
    Case(1, 1),
    Case(1, 111, query_heads=7),
    Case(17, 17),
    Case(63, 64),
    Case(64, 63),
    Case(65, 65, is_causal=False),
    Case(111, 17),
    Case(17, 111),
    Case(64, 64, is_causal=False, query_heads=1),
]
HEADS = [
    Case(33, 40, query_heads=4, kv_heads=4),
    Case(33, 40, query_heads=8, kv_heads=2),
    Case(19, 70, query_heads=14, kv_heads=2),
    Case(1, 70, batch=2, query_heads=28, kv_heads=4, kv_length=(69, 1)),
]
WIDTHS = [
    Case(21, 37, head_dim=width, value_head_dim=value_width, dtype=dtype)
    for width, value_width, dtype in (
        (8, None, "float32"),
        (80, None, "float16"),
        (96, None, "bfloat16"),
        (128, None, "float16"),
        (192, None, "bfloat16"),
        (256, None, "float32"),
        (64, 128, "float16"),
        (128, 40, "float32"),
        (1, 1, "float32"),
        (7, 256, "bfloat16"),
        (256, 3, "float16"),
    )
]
VALID_LENGTHS = [
    Case(5, 70, batch=4, kv_length=(70, 33, 5, 0), dtype="float16"),
    Case(40, 65, batch=3, kv_length=(65, 64, 12), query_heads=4, kv_heads=2),
    Case(9, 64, batch=3, kv_length=(1, 32, 63), is_causal=False, dtype="bfloat16"),
    Case(2, 40, batch=2, kv_length=(-3, 1000)),  # clamped to [0, kv_len]
]
GAINS = [
    Case(30, 50, batch=2, gains=gains, dtype=dtype, is_causal=causal)
    for gains, dtype, causal in (
        ("none", "float32", True),
        ("wide", "float32", True),
        ("wide", "bfloat16", False),
        ("zero", "float32", False),
        ("zero", "float16", True),
    )
]
OTHERS = [
    Case(29, 45, batch=2, query_heads=6, kv_heads=3, head_dim=72, packed_heads=True),
    Case(1, 90, batch=2, query_heads=8, kv_heads=2, kv_length=(90, 7), packed_heads=True, dtype="float16"),
    Case(6, 20, batch=2, shared_gains=True),
    Case(25, 25, head_dim=16, scale=40.0),  # logits of hundreds: exp without the running maximum would overflow
    Case(25, 25, head_dim=16, scale=1e-7),
]
CASES = [*LENGTHS, *HEADS, *WIDTHS, *VALID_LENGTHS, *GAINS, *OTHERS]


pytestmark = pytest.mark.usefixtures("kernel")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel_matches_float64(host_library: ctypes.CDLL, case: Case, kernel: str) -> None:
    inputs = random_inputs(case)
    expected, magnitude = reference(case, inputs)
    actual = run_on_host(launcher(host_library), case, inputs)
    assert np.all(np.isfinite(expected))
    # The error of a logit is relative to the logit, and enters the weights through exp.
    logit_error = 2.0**-24 * np.abs(np.nan_to_num(inputs.query)).max() ** 2 * (case.scale or 0.0) * case.head_dim
    relative = FLOAT32_SUMS + ROUNDINGS[kernel] * ROUNDOFF[case.dtype] + 4 * logit_error
    bound = relative * magnitude + 6e-8  # float16 rounds what is tiny to 2^-24
    assert np.all(np.abs(actual - expected) <= bound), np.max(np.abs(actual - expected) / bound)


def test_rows_that_see_no_key_are_zero(host_library: ctypes.CDLL) -> None:
    case = Case(40, 20, batch=2, kv_length=(20, 0))  # causal: the first 20 queries of batch row 0 see nothing
    actual = run_on_host(launcher(host_library), case, random_inputs(case))
    assert not actual[0, :, :20].any()
    assert np.all(actual[0, :, 20:].any(axis=-1))
    assert not actual[1].any()


def test_rows_of_gain_zero_are_zero(host_library: ctypes.CDLL) -> None:
    case = Case(10, 40, batch=2, gains="zero", is_causal=False)
    actual = run_on_host(launcher(host_library), case, random_inputs(case))
    assert actual[0].any()
    assert not actual[1].any()


def test_a_visible_nan_is_not_hidden(host_library: ctypes.CDLL) -> None:
    case = Case(4, 40, query_heads=1, is_causal=True)
    inputs = random_inputs(case)
    inputs.key[0, 0, 37] = np.nan  # causal: seen by queries 1, 2 and 3
    actual = run_on_host(launcher(host_library), case, inputs)
    assert np.all(np.isfinite(actual[0, 0, 0]))
    assert np.all(np.isnan(actual[0, 0, 1:]))


RACE_CASES = [
    Case(35, 70, query_heads=4, kv_heads=2, head_dim=40),
    Case(3, 45, batch=2, query_heads=7, kv_heads=1, kv_length=(45, 33), dtype="float16"),
]


@pytest.mark.parametrize("case", RACE_CASES, ids=str)
@pytest.mark.parametrize("schedule", [1, 2, 3])
def test_result_does_not_depend_on_thread_order(host_library: ctypes.CDLL, case: Case, schedule: int) -> None:
    inputs = random_inputs(case)
    in_order = run_on_host(launcher(host_library, 0), case, inputs)
    assert np.array_equal(run_on_host(launcher(host_library, schedule), case, inputs), in_order)


@pytest.mark.parametrize(
    "change",
    [
        {"query_heads": 3, "kv_heads": 2},
        {"head_dim": 257},
        {"value_head_dim": 257},
        {"q_len": 0},
        {"kv_len": 0},
        {"batch": 0},
        {"batch": 65536},
        {"scale": 0.0},
        {"scale": float("nan")},
        {"dtype": 3},
        {"query": None},
        {"struct_bytes": 8},
    ],
    ids=str,
)
def test_invalid_parameters_are_refused(host_library: ctypes.CDLL, change: dict[str, object]) -> None:
    buffer = np.zeros(1024, np.float32)
    memory = buffer.ctypes.data
    params = AnchoredAttentionParams(
        query=memory, key=memory, value=memory, key_log_gain=memory, value_gain=memory, out=memory,
        batch=1, query_heads=1, kv_heads=1, q_len=1, kv_len=1, head_dim=8, value_head_dim=8, scale=1.0, dtype=2,
    )  # fmt: skip
    assert host_library.va_anchored_attention_launch(ctypes.byref(params), None) == 0
    for name, value in change.items():
        setattr(params, name, value)
    assert host_library.va_anchored_attention_launch(ctypes.byref(params), None) == 1  # cudaErrorInvalidValue
