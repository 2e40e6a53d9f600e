"""The TensorRT plugin's own code around its kernel compiled for the CPU: sizes and pointers must arrive."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from attention_case import Case, random_inputs, reference, run_on_host

from va_export.native.anchored_attention_params import AnchoredAttentionParams

CASES = [
    Case(5, 19, batch=2, query_heads=6, kv_heads=3, head_dim=24, value_head_dim=40, dtype="float16"),
    Case(5, 19, batch=2, query_heads=4, kv_heads=1, head_dim=16, kv_length=(7, 19), dtype="bfloat16"),
    Case(1, 200, query_heads=4, kv_heads=2, dtype="float16"),  # keys are split: it needs the workspace
    Case(3, 9, batch=1, head_dim=8, is_causal=False, scale=0.3),
]


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_serialised_and_cloned_plugin_computes_the_op(plugin_driver: ctypes.CDLL, case: Case) -> None:
    inputs = random_inputs(case)
    expected, magnitude = reference(case, inputs)
    actual = run_on_host(lambda params: plugin_driver.run_plugin(ctypes.byref(params)), case, inputs)
    tolerance = {"float32": 4e-6, "float16": 2.0**-10, "bfloat16": 2.0**-7}[case.dtype]
    assert np.all(np.abs(actual - expected) <= tolerance * magnitude + 6e-8)
    assert plugin_driver.plugin_log() == b""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 0.0}, "field 'scale' is 0.000000, expected a number above 0"),
        ({"scale": float("nan")}, "field 'scale' is nan, expected a number above 0"),
        ({"is_causal": 2}, "field 'is_causal' is 2.000000, expected 0 or 1"),
        ({"query_heads": 3, "kv_heads": 2}, "query has 3 heads, which is no multiple of the 2 heads of key and value"),
        ({"head_dim": 257}, "query has head_dim = 257, supported are 1 to 256"),
        ({"value_head_dim": 300}, "value has value_head_dim = 300, supported are 1 to 256"),
        ({"q_len": 0}, "the launch failed: invalid argument"),
    ],
    ids=str,
)
def test_what_the_plugin_refuses_it_explains(
    plugin_driver: ctypes.CDLL, change: dict[str, object], message: str
) -> None:
    buffer = np.zeros(1024, np.float32)
    memory = buffer.ctypes.data
    params = AnchoredAttentionParams(
        query=memory, key=memory, value=memory, key_log_gain=memory, value_gain=memory, out=memory,
        batch=1, query_heads=2, kv_heads=2, q_len=1, kv_len=1, head_dim=8, value_head_dim=8, scale=1.0, dtype=2,
    )  # fmt: skip
    for name, value in change.items():
        setattr(params, name, value)
    assert plugin_driver.run_plugin(ctypes.byref(params)) != 0
    assert plugin_driver.plugin_log().decode() == f"AnchoredAttention (node 'node'): {message}\n"
