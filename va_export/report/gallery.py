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
from va_export.proof.reference_form import check_form
from va_export.report import charts, pictures

Array = npt.NDArray[Any]
_SHOWN = ("frames", "sharing_score", "labels")


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
    """The pictures of one video."""

    n_frames: int
    grid: int
    scored: tuple[FramePicture, ...]
    clustered: tuple[FramePicture, ...]
    subspaces: tuple[Subspace, ...]
    spread: Markup
    not_finite: int


def read_gallery(path: Path, indices: Sequence[int]) -> Gallery | None:
    """Pictures from a reference.npz; None where it is missing, or has no frames or no score.

    Args:
        indices: the frames' places in the video, empty if unknown.

    Raises:
        VaExportError: the file is damaged, or its tokens do not fill a square grid in every frame.
    """
    arrays = _read_arrays(path)
    if "frames" not in arrays or "sharing_score" not in arrays:
        return None
    frames = arrays["frames"].astype(np.uint8, copy=False)
    score, labels = arrays["sharing_score"].reshape(-1), arrays.get("labels")
    captions = _captions(len(frames), indices)
    grid = pictures.token_grid(score, len(frames))
    colours = {} if labels is None else pictures.label_colours(labels)
    return Gallery(
        n_frames=len(frames),
        grid=grid.shape[1],
        scored=tuple(
            FramePicture(pictures.data_uri(picture), _heat_in_words(caption, cells), caption)
            for picture, caption, cells in zip(pictures.score_pictures(frames, score), captions, grid, strict=True)
        ),
        clustered=() if labels is None else _clustered(frames, labels, colours, captions),
        subspaces=() if labels is None else _subspaces(labels, score, len(frames), colours),
        spread=charts.score_spread(score),
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
    grid = pictures.token_grid(labels, len(frames))
    return tuple(
        FramePicture(pictures.data_uri(picture), f"{caption}: tokens of {len(np.unique(cells))} subspaces", caption)
        for picture, caption, cells in zip(painted, captions, grid, strict=True)
    )


def _captions(n_frames: int, indices: Sequence[int]) -> list[str]:
    """Names of the frames: their number, and their place in the video where the manifest knows it."""
    if len(indices) != n_frames:
        return [f"Frame {place + 1}" for place in range(n_frames)]
    return [f"Frame {place + 1} (video frame {index})" for place, index in enumerate(indices)]


def _heat_in_words(caption: str, cells: Array) -> str:
    values = np.nan_to_num(cells.astype(np.float64))
    row, column = divmod(int(values.argmax()), values.shape[1])
    highest = f"{values.max():.2f} in row {row + 1}, column {column + 1}"
    return f"{caption}: mean sharing score {values.mean():.2f}, highest {highest}"


def _subspaces(
    labels: Array,
    score: Array,
    n_frames: int,
    colours: Mapping[int, pictures.Colour],
) -> tuple[Subspace, ...]:
    """Legend entries, the largest subspace first (the order in which colours were given)."""
    in_frame = pictures.token_grid(labels, n_frames)
    return tuple(
        Subspace(
            label=label,
            colour="#{:02x}{:02x}{:02x}".format(*colour),
            ink="black" if pictures.luminance(colour) > 0.18 else "white",
            tokens=int((labels == label).sum()),
            frames=int((in_frame == label).any(axis=(1, 2)).sum()),
            mean_score=float(np.nan_to_num(score.astype(np.float64))[labels == label].mean()),
        )
        for label, colour in colours.items()
    )
