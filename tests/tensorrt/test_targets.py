from __future__ import annotations

import pytest
from refusals import refused

from va_export.tensorrt.api import TensorRT
from va_export.tensorrt.targets import CURRENT_GPU, DEFAULT_TARGETS, check_targets, parse_targets, supported_targets


def test_targets_are_sorted_and_unique() -> None:
    assert parse_targets("sm120, SM80,sm89,sm80") == ("sm80", "sm89", "sm120")
    assert parse_targets("current") == (CURRENT_GPU,)


@pytest.mark.parametrize(
    ("text", "named"),
    [("", []), ("sm80,ampere", ["ampere"]), ("current,sm80", ["current"])],
)
def test_wrong_words_are_refused(text: str, named: list[str]) -> None:
    with refused("--target", *named):
        parse_targets(text)


def test_rtx_builds_for_its_defaults_and_not_for_hopper(rtx: TensorRT) -> None:
    check_targets(rtx, DEFAULT_TARGETS["tensorrt-rtx"])
    assert "sm90" not in supported_targets(rtx)
    with refused("--target", "sm90") as error:
        check_targets(rtx, ("sm80", "sm90"))
    assert error.value.fix is not None and "sm75, sm80, sm86, sm89, sm120" in error.value.fix


def test_rtx_itself_refuses_hopper(rtx: TensorRT) -> None:
    trt = rtx.module
    builder = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    assert config.set_compute_capability(trt.ComputeCapability(89), 0) is True
    assert config.set_compute_capability(trt.ComputeCapability(90), 0) is False


def test_full_tensorrt_builds_for_the_present_gpu_only(rtx: TensorRT) -> None:
    full = TensorRT("tensorrt", rtx.module, "11.0")
    check_targets(full, (CURRENT_GPU,))
    with refused("--target", "TensorRT 11.0", "sm80"):
        check_targets(full, ("sm80",))
