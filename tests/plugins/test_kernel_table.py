"""Which kernel a launch takes: what the table says, before it the environment, and a name that is none is an error."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import numpy as np
import pytest
from attention_case import Array, Case, launcher, random_inputs, run_on_host
from golden_scores import planted_tokens
from refusals import refused
from score_case import score_on_host

from va_export.native import kernels
from va_export.native.anchored_attention_params import AnchoredAttentionParams
from va_export.native.kernels import (
    DECODE,
    PHASES,
    PREFILL,
    PRODUCTS,
    Phase,
    kernels_of,
    select_kernel,
    selected_kernel,
)
from va_export.settings import ScoreSettings

CASES = {PREFILL: Case(40, 90, dtype="float16"), DECODE: Case(3, 90, dtype="float16")}
INVALID_VALUE = 1
PLAIN, MMA, HOPPER = "simple", "mma_sync", "tensor_core"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for phase in PHASES:
        monkeypatch.delenv(phase.variable, raising=False)


@pytest.fixture
def library(host_library: ctypes.CDLL) -> Iterator[ctypes.CDLL]:
    """The attention kernels on an emulated Hopper; table and GPU are set back afterwards."""
    host_library.simt_set_gpu(90, 2, 1 << 20)
    yield kernels.bind(host_library)
    for phase in (PREFILL, DECODE):
        select_kernel(host_library, 0, phase, PLAIN)
    host_library.simt_set_gpu(80, 4, 1 << 20)


def result_of(library: ctypes.CDLL, phase: Phase) -> tuple[Array, bool]:
    """The result of a launch, and whether wgmma worked it out."""
    before = library.simt_wgmma_products()
    result = run_on_host(launcher(library), CASES[phase], random_inputs(CASES[phase]))
    return result, library.simt_wgmma_products() > before


@pytest.mark.parametrize(
    ("architecture", "prefill"),
    [(80, (PLAIN, MMA)), (89, (PLAIN, MMA)), (90, (PLAIN, MMA, HOPPER)), (120, (PLAIN, MMA))],
)
def test_lists_the_kernels_of_a_gpu(library: ctypes.CDLL, architecture: int, prefill: tuple[str, ...]) -> None:
    library.simt_set_gpu(architecture, 2, 1 << 20)
    assert kernels_of(library, 0, PREFILL) == prefill
    assert kernels_of(library, 0, DECODE) == (PLAIN, MMA)
    assert kernels_of(library, 0, PRODUCTS) == (PLAIN, "tensor_core")
    assert kernels_of(library, 0, Phase("anchored_attention", "training", "")) == ()
    assert kernels_of(library, -1, PREFILL) == kernels_of(library, 64, PREFILL) == ()


def test_launches_take_what_was_selected_for_their_phase(library: ctypes.CDLL) -> None:
    plain = {phase: result_of(library, phase) for phase in CASES}
    assert not plain[PREFILL][1]
    select_kernel(library, 0, DECODE, MMA)
    assert not np.array_equal(result_of(library, DECODE)[0], plain[DECODE][0])  # they round the weights differently
    np.testing.assert_array_equal(result_of(library, PREFILL)[0], plain[PREFILL][0])
    select_kernel(library, 0, PREFILL, MMA)
    mma, has_wgmma = result_of(library, PREFILL)
    assert not has_wgmma and not np.array_equal(mma, plain[PREFILL][0])
    select_kernel(library, 0, PREFILL, HOPPER)
    assert result_of(library, PREFILL)[1]
    select_kernel(library, 0, PREFILL, PLAIN)
    np.testing.assert_array_equal(result_of(library, PREFILL)[0], plain[PREFILL][0])


def test_the_environment_comes_before_the_table(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    select_kernel(library, 0, PREFILL, MMA)
    monkeypatch.setenv(PREFILL.variable, HOPPER)
    assert selected_kernel(library, 0, PREFILL) == HOPPER
    assert selected_kernel(library, 0, DECODE) == MMA  # the best that decode has
    assert result_of(library, PREFILL)[1]
    monkeypatch.setenv(PREFILL.variable, "")
    assert selected_kernel(library, 0, PREFILL) == MMA
    assert not result_of(library, PREFILL)[1]


@pytest.mark.parametrize(
    ("device", "phase", "kernel"),
    [
        (0, PREFILL, "tensor-core"),
        (0, PREFILL, ""),
        (0, DECODE, HOPPER),  # there is none for decode
        (0, PRODUCTS, MMA),
        (0, Phase("attention", "prefill", ""), PLAIN),
        (-1, PREFILL, PLAIN),
        (64, PREFILL, PLAIN),
    ],
)
def test_what_is_not_there_cannot_be_selected(library: ctypes.CDLL, device: int, phase: Phase, kernel: str) -> None:
    select_kernel(library, 0, PREFILL, MMA)
    with refused("va_kernels_select", kernel, phase.name, phase.op, device):
        select_kernel(library, device, phase, kernel)
    assert selected_kernel(library, 0, PREFILL) == MMA


def test_hoppers_kernel_is_not_for_other_gpus(library: ctypes.CDLL) -> None:
    library.simt_set_gpu(89, 2, 1 << 20)
    with refused("va_kernels_select", HOPPER):
        select_kernel(library, 0, PREFILL, HOPPER)


def test_an_unknown_kernel_in_the_environment_is_an_error(
    library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It meant the plain kernel, without a word."""
    monkeypatch.setenv(PREFILL.variable, "tensor-core")
    launch, statuses = launcher(library), []

    def launch_and_tell(params: AnchoredAttentionParams) -> int:
        statuses.append(launch(params))
        return 0

    for phase in CASES:
        run_on_host(launch_and_tell, CASES[phase], random_inputs(CASES[phase]))
    assert statuses == [INVALID_VALUE, INVALID_VALUE]
    with refused(PREFILL.variable, "tensor-core"):
        selected_kernel(library, 0, DECODE)


def test_score_products_are_selected(score_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unselected they are plain, whatever the GPU; an unknown name is an error."""
    library = kernels.bind(score_library)
    tokens = planted_tokens(12, 2, 12, noise=0.05, seed=0)[0].astype(np.float32)
    settings = ScoreSettings(n_subspaces=2, max_iter=40)

    def result() -> Array:
        return score_on_host(library, tokens, settings).self_expression

    try:
        plain = result()
        select_kernel(library, 0, PRODUCTS, "tensor_core")
        on_tensor_cores = result()
        monkeypatch.setenv(PRODUCTS.variable, PLAIN)
        np.testing.assert_array_equal(result(), plain)
        monkeypatch.setenv(PRODUCTS.variable, "tensor_core")
        select_kernel(library, 0, PRODUCTS, PLAIN)
        np.testing.assert_array_equal(result(), on_tensor_cores)
        assert not np.array_equal(plain, on_tensor_cores)
        monkeypatch.setenv(PRODUCTS.variable, "tensor-core")
        with pytest.raises(AssertionError):
            result()
    finally:
        select_kernel(library, 0, PRODUCTS, PLAIN)
