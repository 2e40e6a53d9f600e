"""The shapes that engines are built for: from the limits over a component's ranges to profiles of its inputs."""

from __future__ import annotations

import pytest
from refusals import refused

from va_export.bundle.tensors import DimensionRange
from va_export.models.component import Component
from va_export.settings import Limits
from va_export.tensorrt.profiles import ShapeRange, shape_profiles

LIMITS = Limits(
    max_batch_size=2,
    max_input_len=4096,
    max_kv_cache_capacity=8192,
    max_frames=16,
    opt_input_len=2304,
    opt_frames=8,
)


def test_the_decoder_has_a_profile_for_prefill_and_one_for_decode(components: dict[str, Component]) -> None:
    shapes = {
        "position_ids": (1, "batch", "sequence"),
        "inputs_embeds": ("batch", "sequence", 64),
        "past_length": ("batch",),
        "past_key_values.0.key": ("batch", 2, 8192, 16),
        "table": (4, 4),
    }
    prefill, decode = shape_profiles(shapes, components["decoder"].ranges(LIMITS))
    assert (prefill.name, decode.name) == ("prefill", "decode")
    assert prefill.ranges["inputs_embeds"] == ShapeRange((1, 1, 64), (1, 2304, 64), (2, 4096, 64))
    assert decode.ranges["inputs_embeds"] == ShapeRange((1, 1, 64), (1, 1, 64), (2, 2, 64))
    assert prefill.ranges["position_ids"] == ShapeRange((1, 1, 1), (1, 1, 2304), (1, 2, 4096))
    assert decode.ranges["position_ids"] == ShapeRange((1, 1, 1), (1, 1, 1), (1, 2, 2))
    assert decode.ranges["past_key_values.0.key"].max == (2, 2, 8192, 16)
    assert "table" not in prefill.ranges


def test_visual_tokens_follow_from_frames(components: dict[str, Component]) -> None:
    shapes = {"visual_tokens": ("visual_count", 64)}
    (embedding,) = shape_profiles(shapes, components["embedding"].ranges(LIMITS))
    # two rows of a batch, each with the most frames
    assert embedding.ranges["visual_tokens"] == ShapeRange((1, 64), (2048, 64), (8192, 64))
    (score,) = shape_profiles(shapes, components["score"].ranges(LIMITS))  # of one video
    assert score.ranges["visual_tokens"] == ShapeRange((24, 64), (2048, 64), (4096, 64))
    (vision,) = shape_profiles({"pixel_values": ("frames", 3, 448, 448)}, components["vision"].ranges(LIMITS))
    assert vision.ranges["pixel_values"] == ShapeRange((1, 3, 448, 448), (8, 3, 448, 448), (16, 3, 448, 448))


@pytest.mark.parametrize("name", ["vision", "embedding", "decoder", "score"])
def test_every_dimension_of_a_components_inputs_has_a_range(components: dict[str, Component], name: str) -> None:
    component = components[name]
    static = {"capacity": 8192}  # a number before the file is parsed
    shapes = {info.name: tuple(static.get(str(d), d) for d in info.shape) for info in component.inputs}
    dynamic = {name for name, shape in shapes.items() if any(isinstance(d, str) for d in shape)}
    for profile in shape_profiles(shapes, component.ranges(LIMITS)):
        assert set(profile.ranges) == dynamic


def test_static_shapes_need_no_profile(components: dict[str, Component]) -> None:
    assert shape_profiles({"pixel_values": (8, 3, 448, 448)}, components["vision"].ranges(LIMITS)) == ()


def test_a_dimension_without_a_range_is_named() -> None:
    with refused("x", "width"):
        shape_profiles({"x": ("batch", "width")}, {"p": {"batch": DimensionRange(1, 1, 2)}})


def test_a_range_must_ascend() -> None:
    with refused("min, opt, max", (1, 8), (1, 4), (2, 16), fix=False):
        ShapeRange((1, 8), (1, 4), (2, 16))
