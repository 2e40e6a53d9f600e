"""Pictures: the right cells in the right colours, worked out here by hand."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image
from refusals import refused

from va_export.report import pictures

WHITE = np.full((64, 64, 3), 255, dtype=np.uint8)


def luminance(rgb: np.ndarray) -> np.ndarray:
    """Relative luminance of WCAG 2.2."""
    encoded = rgb / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


def cell(picture: np.ndarray, grid: int, row: int, column: int) -> np.ndarray:
    width = len(picture) // grid
    return picture[row * width : (row + 1) * width, column * width : (column + 1) * width]


def test_tokens_lie_step_by_step_and_row_by_row() -> None:
    grid = pictures.token_grid(np.arange(2 * 3 * 4), (2, 3, 4))
    assert grid[1, 2, 0] == 12 + 2 * 4


@pytest.mark.parametrize(("tokens", "grid"), [(10, (3, 2, 2)), (24, (3, 3, 3)), (0, (2, 0, 5))])
def test_tokens_that_do_not_fill_their_grid_are_refused(tokens: int, grid: tuple[int, int, int]) -> None:
    with refused("reference.npz", tokens, *grid):
        pictures.token_grid(np.zeros(tokens), grid)


def test_a_wide_grid_makes_a_wide_picture() -> None:
    score = np.zeros((1, 2, 4))
    score[0, 1, 3] = 1.0
    (picture,) = pictures.score_pictures(np.full((1, 56, 112, 3), 255, np.uint8), score)
    width = pictures.PICTURE_SIDE // 4
    assert picture.shape == (2 * width, 4 * width, 3)
    assert (picture[width:, 3 * width :] == picture[-1, -1]).all()
    assert (picture[:width] == picture[0, 0]).all() and (picture[0, 0] != picture[-1, -1]).any()
    numbered = pictures.number_regions(picture, (score[0] > 0).astype(int))
    assert numbered.shape == picture.shape


def test_only_the_high_scoring_token_is_tinted_bright() -> None:
    score = np.zeros(2 * 16, dtype=np.float32)
    score[16 + 1 * 4 + 2] = 1.0  # frame 1, row 1, column 2
    first, second = pictures.score_pictures(np.stack([WHITE, WHITE]), score.reshape(2, 4, 4))
    low, high = cell(first, 4, 0, 0)[0, 0], cell(second, 4, 1, 2)[0, 0]
    assert (cell(second, 4, 1, 2) == high).all()
    for row in range(4):
        for column in range(4):
            assert (cell(first, 4, row, column) == low).all()
            if (row, column) != (1, 2):
                assert (cell(second, 4, row, column) == low).all()
    assert luminance(high) > 4 * luminance(low)


def test_a_tint_is_the_stated_mixture_of_grey_and_colour() -> None:
    frame = np.full((8, 8, 3), (200, 100, 50), dtype=np.uint8)
    mixed = pictures.tint(frame, np.full((2, 2, 3), (10, 20, 250), dtype=np.uint8), strength=0.25)
    grey = 0.2126 * 200 + 0.7152 * 100 + 0.0722 * 50
    expected = np.rint([0.75 * grey + 0.25 * 10, 0.75 * grey + 0.25 * 20, 0.75 * grey + 0.25 * 250])
    assert mixed.shape[0] % 2 == 0
    assert abs(mixed.shape[0] - pictures.PICTURE_SIDE) <= 2
    assert (mixed == expected).all()


def test_the_frame_shows_through_its_tint() -> None:
    frame = WHITE.copy()
    frame[:, :32] = 0
    picture = pictures.score_pictures(frame[None], np.full((1, 4, 4), 0.5))[0]
    side = len(picture)
    assert picture[:, side * 3 // 4].mean() > picture[:, side // 4].mean() + 50


def test_colours_of_scores_rise_in_luminance_only() -> None:
    ramp = luminance(pictures.heat_colours(np.linspace(0, 1, 101)).astype(np.float64))
    assert (np.diff(ramp) > -1e-3).all()
    assert ramp[-1] - ramp[0] > 0.7


def test_a_constant_score_gives_one_colour_and_no_warning() -> None:
    picture = pictures.score_pictures(WHITE[None], np.zeros((1, 4, 4), dtype=np.float32))[0]
    assert (picture == picture[0, 0]).all()
    same = pictures.score_pictures(WHITE[None], np.ones((1, 4, 4), dtype=np.float32))[0]
    assert (same == same[0, 0]).all()
    assert (same[0, 0] != picture[0, 0]).any()


def test_scores_outside_the_range_are_clipped_and_nan_counts_as_zero() -> None:
    colours = pictures.heat_colours(np.array([-3.0, np.nan, 0.0, 1.0, 9.0, np.inf]))
    assert (colours[:3] == pictures.HEAT_STOPS[0]).all()
    assert (colours[3:] == pictures.HEAT_STOPS[-1]).all()


def test_the_colours_of_twenty_four_subspaces_can_be_told_apart() -> None:
    colours = pictures.distinct_colours(24).astype(int)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 1e9 * np.eye(24)
    assert distances.min() > 30
    assert (pictures.distinct_colours(6) == colours[:6]).all()


def test_more_subspaces_than_colours_still_get_one_each() -> None:
    assert pictures.distinct_colours(2000).shape == (2000, 3)


def test_a_subspace_has_one_colour_in_all_frames_and_the_largest_the_first() -> None:
    labels = np.array([7, 7, 7, 3, 3, 7, 7, 9]).reshape(2, 2, 2)
    colours = pictures.label_colours(labels)
    assert list(colours) == [7, 3, 9]
    assert len(set(colours.values())) == 3
    first, second = pictures.subspace_pictures(np.stack([WHITE, WHITE]), labels, colours)
    # corners lie clear of the numbers in the middle of the cells and of the lines between them
    seven, three = first[2, 2], second[2, 2]
    assert (seven != three).any()
    assert (first[2, -3] == seven).all()
    assert (second[2, -3] == seven).all()
    assert (first[-3, -3] == three).all()


def test_regions_are_outlined_where_subspaces_meet_and_only_there() -> None:
    grey = np.full((40, 40, 3), 200, dtype=np.uint8)
    outlined = pictures.outline_regions(grey, np.array([[0, 1], [0, 1]]))
    assert (outlined[:, 20] < 60).all()
    assert (outlined[:, :18] == 200).all()
    assert (outlined[:, 24:] == 200).all()


def test_large_regions_carry_their_number_and_small_ones_do_not() -> None:
    grey = np.full((320, 320, 3), 120, dtype=np.uint8)
    labels = np.zeros((16, 16), dtype=np.int64)
    labels[0, 0] = 5
    numbered = pictures.number_regions(grey, labels)
    rows, columns = np.nonzero((numbered != 120).any(axis=-1))
    assert 130 < rows.min() < rows.max() < 190
    assert 130 < columns.min() < columns.max() < 190
    assert (numbered[:20, :20] == 120).all()


def test_luminance_is_that_of_wcag() -> None:
    assert pictures.luminance((255, 255, 255)) == pytest.approx(1.0)
    assert pictures.luminance((0, 0, 0)) == 0.0
    assert pictures.luminance((255, 0, 0)) == pytest.approx(0.2126)
    assert pictures.luminance((118, 118, 118)) == pytest.approx(0.18, abs=0.003)  # 18 % grey


def test_a_data_uri_holds_the_picture() -> None:
    picture = pictures.score_pictures(WHITE[None], np.linspace(0, 1, 16).reshape(1, 4, 4))[0]
    address = pictures.data_uri(picture)
    head, body = address.split(",", 1)
    assert head == "data:image/jpeg;base64"
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(body))), dtype=np.float64)
    assert decoded.shape == picture.shape
    assert np.abs(decoded - picture).mean() < 3
