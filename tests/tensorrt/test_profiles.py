from __future__ import annotations

import pytest
from msgspec.structs import replace

from va_export.errors import VaExportError
from va_export.settings import Limits
from va_export.tensorrt.profiles import DimensionRange, ShapeRange, dimension_ranges, shape_profiles

LIMITS = Limits(
    max_batch_size=2,
    max_input_len=4096,
    max_kv_cache_capacity=8192,
    max_frames=16,
    opt_input_len=2304,
    opt_frames=8,
)


def test_the_decoder_has_a_profile_for_prefill_and_one_for_decode() -> None:
    shapes = {
        "inputs_embeds": ("batch", "sequence", 64),
        "past_length": ("batch",),
        "past_key_values.0.key": ("batch", 2, 8192, 16),
        "table": (4, 4),
    }
    prefill, decode = shape_profiles(shapes, dimension_ranges("decoder", LIMITS, 256))
    assert (prefill.name, decode.name) == ("prefill", "decode")
    assert prefill.ranges["inputs_embeds"] == ShapeRange((1, 1, 64), (1, 2304, 64), (2, 4096, 64))
    assert decode.ranges["inputs_embeds"] == ShapeRange((1, 1, 64), (1, 1, 64), (2, 2, 64))
    assert decode.ranges["past_key_values.0.key"].max == (2, 2, 8192, 16)
    assert "table" not in prefill.ranges


def test_visual_tokens_follow_from_frames() -> None:
    (profile,) = shape_profiles({"visual_tokens": ("visual_count", 64)}, dimension_ranges("embedding", LIMITS, 256))
    # two rows of a batch, each with the most frames
    assert profile.ranges["visual_tokens"] == ShapeRange((1, 64), (2048, 64), (8192, 64))


def test_static_shapes_need_no_profile() -> None:
    assert shape_profiles({"pixel_values": (8, 3, 448, 448)}, dimension_ranges("vision", LIMITS, 256)) == ()


def test_a_dimension_without_a_range_is_named() -> None:
    with pytest.raises(VaExportError, match="input x has the dynamic dimension 'width'"):
        shape_profiles({"x": ("batch", "width")}, {"p": {"batch": DimensionRange(1, 1, 2)}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"opt_input_len": 5000}, r"opt_input_len \(5000\) is larger than max_input_len \(4096\)"),
        ({"opt_frames": 17}, r"opt_frames \(17\) is larger than max_frames \(16\)"),
        ({"max_frames": 17}, r"max_frames \(17\) times 256 tokens a frame is 4352, more than max_input_len"),
    ],
)
def test_limits_that_contradict_each_other_are_named(changes: dict[str, int], message: str) -> None:
    with pytest.raises(VaExportError, match=message):
        dimension_ranges("decoder", replace(LIMITS, **changes), 256)


def test_an_unknown_component_is_refused() -> None:
    with pytest.raises(VaExportError, match="'audio'"):
        dimension_ranges("audio", LIMITS, 256)


def test_a_range_must_ascend() -> None:
    with pytest.raises(VaExportError, match="ascending"):
        ShapeRange((1, 8), (1, 4), (2, 16))
