"""What both tensor-core kernels do alike: their own source, run on the CPU by the emulator, against float64."""

from __future__ import annotations

import numpy as np
import pytest
from attention_case import Case, as_float64, encode, random_inputs
from tensor_core_case import PREFILL, TensorCoreKernel


@pytest.fixture(params=["mma", "hopper"])
def tensor_core(request: pytest.FixtureRequest) -> TensorCoreKernel:
    kernel: TensorCoreKernel = request.getfixturevalue(request.param)
    return kernel


@pytest.mark.parametrize("case", PREFILL, ids=str)
def test_prefill_matches_float64(tensor_core: TensorCoreKernel, case: Case) -> None:
    tensor_core.assert_right(case)


@pytest.mark.parametrize("gain", [1e-6, 1e-3, 1.0, 100.0, 1e4])
@pytest.mark.parametrize("value_gain", [1e-6, 0.0, 1.0, 1e4])
def test_gains_of_any_size_in_every_tile(tensor_core: TensorCoreKernel, gain: float, value_gain: float) -> None:
    """Half of the tiles have this gain and half have 1: folded and guarded tiles meet in one row, in both orders."""
    keys = tensor_core.tile_keys
    for first in (0, keys):
        case = Case(20, 2 * keys, query_heads=1, head_dim=16, dtype="float16", gains="none", is_causal=False)
        inputs = random_inputs(case)
        inputs.value[:] = as_float64(encode(inputs.value * min(1.0, 1 / (value_gain or 1.0)), "float16"), "float16")
        inputs.key_log_gain[:, first : first + keys] = np.float32(np.log(gain))
        inputs.value_gain[:, first : first + keys] = np.float32(value_gain)
        tensor_core.assert_right(case, inputs)


def test_rows_without_keys_are_zero(tensor_core: TensorCoreKernel) -> None:
    case = Case(40, 20, batch=2, kv_length=(20, 0), dtype="float16")
    actual = tensor_core.assert_right(case)
    assert not actual[0, :, :20].any()
    assert np.all(actual[0, :, 20:].any(axis=-1))
    assert not actual[1].any()


def test_a_visible_nan_is_not_hidden(tensor_core: TensorCoreKernel) -> None:
    case = Case(20, 70, query_heads=1, dtype="float16")
    inputs = random_inputs(case)
    inputs.key[0, 0, 60] = np.nan  # causal: seen by the queries from 10 on
    actual = tensor_core.run(case, inputs)
    assert np.all(np.isnan(actual[0, 0, 10:]))
    assert np.all(np.isfinite(actual[0, 0, :10]))
