"""Fixtures of the engine tests: TensorRT-RTX and the plugin library, or the reason why there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from va_export.errors import VaExportError
from va_export.settings import Limits
from va_export.tensorrt.api import TensorRT, available_flavors, load_tensorrt
from va_export.tensorrt.profiles import DimensionRange, dimension_ranges


@pytest.fixture(scope="session")
def rtx() -> TensorRT:
    if "tensorrt-rtx" not in available_flavors():
        pytest.skip("tensorrt_rtx is not installed")
    return load_tensorrt("tensorrt-rtx")


@pytest.fixture(scope="session")
def plugin_library() -> Path:
    native = pytest.importorskip("va_export.native")
    try:
        return Path(native.plugin_library())
    except VaExportError as error:
        pytest.skip(f"the plugin library is not built: {error.what}")


@pytest.fixture(scope="session")
def capacity() -> int:
    return 96


@pytest.fixture(scope="session")
def decoder_ranges(capacity: int) -> dict[str, dict[str, DimensionRange]]:
    limits = Limits(
        max_batch_size=2,
        max_input_len=64,
        max_kv_cache_capacity=capacity,
        max_frames=4,
        opt_input_len=32,
        opt_frames=2,
    )
    return dimension_ranges("decoder", limits, tokens_per_frame=16)
