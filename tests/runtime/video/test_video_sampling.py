"""Rules that pick frames, against their originals and against arithmetic by hand."""

from __future__ import annotations

import numpy as np
import pytest
from refusals import refused

from va_export.runtime.video import SAMPLERS, check_sampling, is_by_rate, sample_frames

# A clip of 10 s: a still for 6 s, then 8 frames of half a second.
UNEVEN = np.array([0.0, 6.0, 6.5, 7.0, 7.5, 8.0, 8.5, 9.0, 9.5, 10.0])


def official_get_index(max_frame: int, num_segments: int) -> list[int]:
    """`get_index` of OpenGVLab's InternVL evaluation code without a bound, in its own words."""
    seg_size = float(max_frame) / num_segments
    return [int((seg_size / 2) + np.round(seg_size * idx)) for idx in range(num_segments)]


@pytest.mark.parametrize(("count", "n_frames"), [(250, 8), (41, 7), (8, 8), (1, 1), (9, 1), (1000, 64)])
def test_segment_midpoints_are_the_familys(count: int, n_frames: int) -> None:
    assert sample_frames("segment-midpoint", count, n_frames) == official_get_index(count - 1, n_frames)


@pytest.mark.parametrize(
    ("count", "n_frames", "expected"),
    [(10, 4, [0, 3, 6, 9]), (8, 8, list(range(8))), (11, 5, [0, 2, 5, 8, 10]), (5, 1, [0])],
)
def test_uniform_index_goes_from_the_first_to_the_last(count: int, n_frames: int, expected: list[int]) -> None:
    # 11 of 5: 0, 2.5, 5, 7.5, 10, halves to the even number.
    assert sample_frames("uniform-index", count, n_frames) == expected


def test_uniform_time_takes_what_is_on_the_screen() -> None:
    # Moments 1, 3, 5, 7, 9 s.
    assert sample_frames("uniform-time", 9, 5, UNEVEN) == [0, 0, 0, 3, 7]
    assert sample_frames("uniform-index", 9, 5, UNEVEN) == [0, 2, 4, 6, 8]


def test_uniform_time_of_an_even_clip_takes_the_middle_of_each_span() -> None:
    for rate in (23.976, 25.0, 29.97, 30.0):  # a moment that falls on an edge belongs to the frame that begins there
        edges = np.arange(49) / rate
        assert sample_frames("uniform-time", 48, 8, edges) == [3, 9, 15, 21, 27, 33, 39, 45]


@pytest.mark.parametrize(
    ("rule", "most", "expected"),
    [
        ("fps=1", 16, [0, 1, 3, 5, 7]),  # 0 to 5 s show the still, then 6, 7, 8, 9 s
        ("fps=2", 16, list(range(9))),
        ("fps=100", 16, list(range(9))),  # no frame twice
        ("fps=0.25", 16, [0, 5]),
        ("fps=0.01", 16, [0]),
        ("fps=1", 2, [0, 4]),  # more than allowed: as many, uniformly in time: 2.5 and 7.5 s
    ],
)
def test_a_rate_takes_frames_at_its_own_moments(rule: str, most: int, expected: list[int]) -> None:
    assert sample_frames(rule, 9, most, UNEVEN) == expected


@pytest.mark.parametrize("rule", [*SAMPLERS, "fps=3"])
@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_indices_exist_and_do_not_descend(rule: str, count: int) -> None:
    for n_frames in range(1, count + 1):
        indices = sample_frames(rule, count, n_frames)
        assert indices[0] >= 0 and indices == sorted(indices) and indices[-1] < count
        assert len(indices) <= n_frames if is_by_rate(rule) else len(indices) == n_frames


@pytest.mark.parametrize(
    "rule", ["", "middle", "fps", "fps=", "fps=0", "fps=-1", "fps=nan", "fps=inf", "fps=two", "FPS=2"]
)
def test_unknown_rules_are_refused_by_name(rule: str) -> None:
    with refused("--sampling", repr(rule)) as caught:
        check_sampling(rule, "--sampling")
    assert "uniform-time" in str(caught.value.fix)


def test_too_few_and_none_are_refused() -> None:
    for rule in SAMPLERS:
        with refused("video", 3, 4):
            sample_frames(rule, 3, 4)
    for rule in (*SAMPLERS, "fps=2"):
        with refused("frames", 0):
            sample_frames(rule, 3, 0)
        with refused("video", 0, 1):
            sample_frames(rule, 0, 1)
