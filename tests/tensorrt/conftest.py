"""Fixtures of the engine tests: TensorRT-RTX and the plugin library, or the reason why there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from va_export.bundle.decoder_shards import DecoderShard
from va_export.bundle.tensors import Profiles
from va_export.errors import VaExportError
from va_export.models import family_named, published_config
from va_export.models.component import Component, score_component
from va_export.models.family import ModelSpec
from va_export.settings import Limits, ScoreSettings
from va_export.tensorrt.api import TensorRT, available_flavors, load_tensorrt


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
def spec() -> ModelSpec:
    """InternVL2-8B: 256 visual tokens a frame."""
    config = published_config("OpenGVLab/InternVL2-8B")
    assert config is not None
    return family_named("internvl2").spec_from_config(config)


@pytest.fixture(scope="session")
def components(spec: ModelSpec) -> dict[str, Component]:
    """Its components by name, the decoder in one piece."""
    family = family_named("internvl2")
    layers = spec.text.num_layers
    parts = family.components(spec, "fp16", (DecoderShard("decoder", 0, layers, layers),))
    score = score_component(spec, lambda frames: family.visual_tokens(spec, frames), ScoreSettings())
    return {part.name: part for part in (*parts, score)}


@pytest.fixture(scope="session")
def capacity() -> int:
    return 96


@pytest.fixture(scope="session")
def decoder_ranges(components: dict[str, Component], capacity: int) -> Profiles:
    limits = Limits(
        max_batch_size=2,
        max_input_len=64,
        max_kv_cache_capacity=capacity,
        max_frames=4,
        opt_input_len=32,
        opt_frames=2,
    )
    return components["decoder"].ranges(limits)
