"""What the mma.sync kernels do alone: their own source, run on the CPU by the emulator, and who takes which tile."""

from __future__ import annotations

import numpy as np
import pytest
from attention_case import Case, launcher, random_inputs, reference, run_on_host, scale_of
from tensor_core_case import EDGES, GROUPS, WIDTHS, TensorCoreKernel

SMALL_SHARED_MEMORY = 86  # an architecture that takes the smaller of the two prefill tiles


@pytest.mark.parametrize("case", [WIDTHS[2], WIDTHS[6], WIDTHS[7], GROUPS[0], EDGES[8]], ids=str)
def test_prefill_of_gpus_with_little_shared_memory(mma: TensorCoreKernel, case: Case) -> None:
    mma.set_gpu(4, SMALL_SHARED_MEMORY)
    mma.assert_right(case)


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
def test_decode_matches_float64_whatever_the_splits(mma: TensorCoreKernel, case: Case, sm_count: int) -> None:
    mma.set_gpu(sm_count, cache_bytes=1 << 20)
    split = mma.assert_right(case, has_workspace=True)
    if sm_count != 132:
        return  # too few multiprocessors for splits in some cases
    whole = mma.assert_right(case, has_workspace=False)  # no workspace: no splits
    if case.kv_len > 128:
        assert not np.array_equal(split, whole)  # the splits were there


def test_decode_does_not_hide_a_visible_nan(mma: TensorCoreKernel) -> None:
    case = Case(4, 70, query_heads=1, dtype="float16")
    inputs = random_inputs(case)
    inputs.key[0, 0, 67] = np.nan  # causal: seen by the queries from 1 on
    actual = mma.run(case, inputs)
    assert np.all(np.isnan(actual[0, 0, 1:]))
    assert np.all(np.isfinite(actual[0, 0, 0]))


@pytest.mark.parametrize("schedule", [1, 2])
@pytest.mark.parametrize("case", [GROUPS[1], DECODE[2]], ids=str)
def test_result_does_not_depend_on_thread_order(mma: TensorCoreKernel, case: Case, schedule: int) -> None:
    inputs = random_inputs(case)
    in_order = mma.run(case, inputs, has_workspace=True)
    assert np.array_equal(mma.run(case, inputs, schedule, has_workspace=True), in_order)


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [(80, (96, 96, 64)), (80, (1, 300, 128)), (80, (24, 200, 128)), (90, (96, 96, 64)), (90, (24, 200, 128))],
    ids=str,
)
def test_error_is_at_most_that_of_pytorchs_float16_attention(
    mma: TensorCoreKernel, architecture: int, shape: tuple[int, int, int]
) -> None:
    """Root mean square error against float64, gains in the bias and in the values, all in float16 as PyTorch does."""
    torch = pytest.importorskip("torch")
    q_len, kv_len, head_dim = shape
    mma.set_gpu(4, architecture)  # 90: the Hopper kernel, for more than 16 positions
    case = Case(q_len, kv_len, query_heads=4, kv_heads=2, head_dim=head_dim, dtype="float16")
    inputs = random_inputs(case)
    expected, _ = reference(case, inputs)
    ours = run_on_host(launcher(mma.library, has_workspace=True), case, inputs)
    query, key, value = (torch.tensor(x, dtype=torch.float16) for x in (inputs.query, inputs.key, inputs.value))
    key, value = key.repeat_interleave(2, dim=1), value.repeat_interleave(2, dim=1)
    visible = torch.ones(q_len, kv_len, dtype=torch.bool).tril(kv_len - q_len)
    bias = torch.tensor(inputs.key_log_gain, dtype=torch.float16)[:, None, None].masked_fill(~visible, -torch.inf)
    logits = query @ key.mT * scale_of(case) + bias
    gained = value * torch.tensor(inputs.value_gain, dtype=torch.float16)[:, None, :, None]
    theirs = (logits.softmax(dim=-1) @ gained).double().numpy()
    assert np.sqrt(np.mean((ours - expected) ** 2)) <= 1.5 * np.sqrt(np.mean((theirs - expected) ** 2))
    assert np.max(np.abs(ours - expected)) <= 1.5 * np.max(np.abs(theirs - expected))
