"""A reference.npz that is not what an export writes is refused before anything is computed with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refused

from va_export.bundle.arrays import read_arrays
from va_export.errors import VaExportError
from va_export.proof.reference import FILE_NAME
from va_export.proof.reference_form import check_form, check_reference
from va_export.report.gallery import read_gallery

VOCABULARY = 263  # of internvl2-tiny: 256 bytes and seven special tokens
Arrays = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def whole(tiny_bundle: Path) -> Arrays:
    return read_arrays(tiny_bundle / FILE_NAME)


def names(whole: Arrays) -> list[str]:
    return [name for name in whole if not name.startswith("vision.")]


def test_what_an_export_writes_has_the_form(whole: Arrays) -> None:
    check_reference(whole, Path("reference.npz"), VOCABULARY)


def test_an_array_may_not_be_missing_or_of_another_type_or_shape(whole: Arrays) -> None:
    for name in names(whole):
        array = whole[name]
        changed = [array.astype("c8"), array.astype(array.dtype.newbyteorder()), array[None]]
        changed += [array[..., :0]] if array.ndim and name != "grid" else []
        if array.ndim and name not in ("frames", "position_ids"):  # their first size is no other array's
            changed.append(np.concatenate([array, array]))
        for other in changed:
            if other.dtype == array.dtype and other.shape == array.shape:  # one byte has no order
                continue
            with pytest.raises(VaExportError) as caught:
                check_reference({**whole, name: other}, Path("reference.npz"), VOCABULARY)
            assert caught.value.where is not None and caught.value.where.startswith("reference.npz")
        with pytest.raises(VaExportError) as caught:
            check_reference({key: whole[key] for key in whole if key != name}, Path("reference.npz"), VOCABULARY)
        assert name in caught.value.what


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("input_ids", VOCABULARY),
        ("anchored_tokens", -1),
        ("plain_tokens", 1 << 40),
        ("labels", -1),
        ("is_visual", False),
        ("is_scored", True),
        ("grid", 0),
    ],
)
def test_arrays_that_contradict_each_other(whole: Arrays, name: str, value: int) -> None:
    array = whole[name].copy()
    array[...] = value
    with pytest.raises(VaExportError):
        check_reference({**whole, name: array}, Path("reference.npz"), VOCABULARY)


def test_what_is_there_of_a_part_is_checked(whole: Arrays) -> None:
    assert check_form({"labels": whole["labels"]}, Path("reference.npz")) == {"M": len(whole["labels"])}
    with pytest.raises(VaExportError):
        check_form({"labels": whole["labels"], "sharing_score": whole["sharing_score"][1:]}, Path("reference.npz"))
    for grid in ([2, 2], [1, 2, 2, 1], [0, 2, 2], [-1, -2, 2]):
        with refused("reference.npz: grid", grid):
            check_form({"grid": np.array(grid)}, Path("reference.npz"))
    assert check_form({"grid": np.array([], np.int64)}, Path("reference.npz")) == {"G": 0}


@pytest.mark.parametrize(("steps", "fits"), [(8, True), (4, True), (5, False), (9, False)])
def test_frames_that_do_not_make_the_steps_of_a_grid_are_refused(steps: int, fits: bool, tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"
    frames = np.zeros((8, 28, 28, 3), np.uint8)
    np.savez(path, frames=frames, grid=np.array([steps, 1, 1]), sharing_score=np.zeros(steps, np.float32))
    if fits:
        gallery = read_gallery(path, [])
        assert gallery is not None and len(gallery.scored) == steps
    else:
        with refused("reference.npz: grid", 8, steps):
            read_gallery(path, [])
