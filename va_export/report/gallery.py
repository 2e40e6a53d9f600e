"""The frames of reference.npz as the page shows them, in pictures and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from va_export.bundle.arrays import read_arrays
from va_export.errors import VaExportError
from va_export.proof.reference_form import check_form
from va_export.report import charts, pictures

Array = npt.NDArray[Any]
_SHOWN = ("frames", "sharing_score", "labels", "grid")


@dataclass(frozen=True)
class FramePicture:
    """One frame as the page shows it."""

    address: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Subspace:
    """One subspace's entry in the legend; `ink` is the text colour that shows best on `colour`."""

    label: int
    colour: str
    ink: str
    tokens: int
    frames: int
    mean_score: float


@dataclass(frozen=True)
class Gallery:
    """The pictures of one video: one for each step of the model's time, which may take several frames together."""

    n_frames: int
    rows: int
    columns: int
    scored: tuple[FramePicture, ...]
    clustered: tuple[FramePicture, ...]
    subspaces: tuple[Subspace, ...]
    spread: Markup
    not_finite: int


def read_gallery(path: Path, indices: Sequence[int]) -> Gallery | None:
    """Pictures from a reference.npz; None where it is missing, or has no frames, no score, or tokens of no one grid.

    Args:
        indices: the frames' places in the video, empty if unknown.

    Raises:
        VaExportError: the file is damaged, or its tokens do not fill their grid.
    """
    arrays = _read_arrays(path)
    if not {"frames", "sharing_score", "grid"} <= arrays.keys() or not arrays["grid"].size:
        return None
    frames = arrays["frames"].astype(np.uint8, copy=False)
    steps, rows, columns = map(int, arrays["grid"])
    score = pictures.token_grid(arrays["sharing_score"], (steps, rows, columns))
    labels = pictures.token_grid(arrays["labels"], (steps, rows, columns)) if "labels" in arrays else None
    captions = _captions(len(frames), steps, indices)
    shown = frames[:: -(-len(frames) // steps)]  # of frames that are taken together the first
    if len(shown) != steps:
        raise VaExportError(
            f"{len(frames)} frames do not make {steps} steps of time",
            where=f"{path}: grid",
            fix="export the bundle again",
        )
    colours = {} if labels is None else pictures.label_colours(labels)
    return Gallery(
        n_frames=len(frames),
        rows=rows,
        columns=columns,
        scored=tuple(
            FramePicture(pictures.data_uri(picture), _heat_in_words(caption, cells), caption)
            for picture, caption, cells in zip(pictures.score_pictures(shown, score), captions, score, strict=True)
        ),
        clustered=() if labels is None else _clustered(shown, labels, colours, captions),
        subspaces=() if labels is None else _subspaces(labels, score, colours),
        spread=charts.score_spread(score.reshape(-1)),
        not_finite=int(np.count_nonzero(~np.isfinite(score))),
    )


def _read_arrays(path: Path) -> dict[str, Array]:
    if not path.is_file():
        return {}
    arrays = {name: array for name, array in read_arrays(path).items() if name in _SHOWN}
    check_form(arrays, path)
    return arrays


def _clustered(
    frames: pictures.UInt8, labels: Array, colours: dict[int, pictures.Colour], captions: list[str]
) -> tuple[FramePicture, ...]:
    painted = pictures.subspace_pictures(frames, labels, colours)
    return tuple(
        FramePicture(pictures.data_uri(picture), f"{caption}: tokens of {len(np.unique(cells))} subspaces", caption)
        for picture, caption, cells in zip(painted, captions, labels, strict=True)
    )


def _captions(n_frames: int, steps: int, indices: Sequence[int]) -> list[str]:
    """Names of what is shown: the frames' numbers, and their places in the video where the manifest knows them."""
    together = -(-n_frames // steps)
    captions = []
    for first in range(0, n_frames, together):
        taken = range(first, min(first + together, n_frames))
        plural = "s" if len(taken) > 1 else ""
        name = f"Frame{plural} {_span([number + 1 for number in taken])}"
        if len(indices) == n_frames:
            name += f" (video frame{plural} {_span([indices[number] for number in taken])})"
        captions.append(name)
    return captions


def _span(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} and {numbers[-1]}"


def _heat_in_words(caption: str, cells: Array) -> str:
    values = np.nan_to_num(cells.astype(np.float64))
    row, column = divmod(int(values.argmax()), values.shape[1])
    highest = f"{values.max():.2f} in row {row + 1}, column {column + 1}"
    return f"{caption}: mean sharing score {values.mean():.2f}, highest {highest}"


def _subspaces(labels: Array, score: Array, colours: Mapping[int, pictures.Colour]) -> tuple[Subspace, ...]:
    """Legend entries, the largest subspace first (the order in which colours were given)."""
    return tuple(
        Subspace(
            label=label,
            colour="#{:02x}{:02x}{:02x}".format(*colour),
            ink="black" if pictures.luminance(colour) > 0.18 else "white",
            tokens=int((labels == label).sum()),
            frames=int((labels == label).any(axis=(1, 2)).sum()),
            mean_score=float(np.nan_to_num(score.astype(np.float64))[labels == label].mean()),
        )
        for label, colour in colours.items()
    )
