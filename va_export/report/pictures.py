"""Pictures of what VideoAnchor found: each frame with its tokens' sharing score or subspace laid over it.

All pictures are uint8 RGB arrays; `data_uri` turns one into a string that a page can carry. The tokens of a frame (or
of frames that the model takes together) lie on a grid, row by row, and each covers the same share of the picture.
"""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from va_export.errors import VaExportError

UInt8 = npt.NDArray[np.uint8]
Float64 = npt.NDArray[np.float64]
AnyArray = npt.NDArray[Any]
Colour = tuple[int, int, int]

PICTURE_SIDE = 320
"""Pixels: about the largest width that a page gives a frame; a picture's longer side, rounded to whole token cells."""

HEAT_STOPS: tuple[Colour, ...] = (
    (14, 14, 26),
    (48, 36, 82),
    (132, 44, 108),
    (222, 76, 66),
    (252, 162, 50),
    (255, 246, 176),
)
"""Colours of scores 0, 0.2, … 1. Luminance only rises, so the order survives grey printing and colour blindness."""

_HEAT_STRENGTH = 0.62
_SUBSPACE_STRENGTH = 0.5
_NUMBER_SIZE = 15  # pixels
_NUMBER_AREA = 7 * _NUMBER_SIZE**2  # square pixels that a region needs for a number that hides little of it
_LUMA = (0.2126, 0.7152, 0.0722)  # ITU-R BT.709


def token_grid(values: AnyArray, grid: tuple[int, int, int]) -> AnyArray:
    """Per-token values (N,) by step of time, row and column, (T, R, C); what follows the grid is left out.

    Raises:
        VaExportError: the tokens do not fill the grid.
    """
    if values.size < math.prod(grid) or min(grid) < 1:
        raise VaExportError(
            f"{values.size} tokens do not fill a grid of {' × '.join(map(str, grid))}",
            where="reference.npz",
            fix="export the bundle again",
        )
    return values[: math.prod(grid)].reshape(grid)


def heat_colours(score: AnyArray) -> UInt8:
    """Colours (…, 3) of scores in [0, 1]: HEAT_STOPS, interpolated. Outside values are clipped, NaN counts as 0."""
    finite = np.clip(np.nan_to_num(score.astype(np.float64), nan=0.0), 0.0, 1.0)
    stops = np.array(HEAT_STOPS, dtype=np.float64)
    positions = np.linspace(0.0, 1.0, len(stops))
    channels = [np.interp(finite, positions, stops[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def distinct_colours(count: int) -> UInt8:
    """(count, 3): colours that are far from each other, the first ones farthest.

    Each next colour is the one of an RGB lattice that lies farthest, in OKLab, from those taken already. Very dark,
    very pale and very loud ones are left out, for they would hide the photograph below or drown in it.
    """
    levels = np.linspace(0, 255, 9)
    lattice = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _oklab(lattice)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    usable = (lab[:, 0] > 0.52) & (lab[:, 0] < 0.92) & (chroma > 0.07) & (chroma < 0.21)
    lattice, lab = lattice[usable], lab[usable]
    taken = [int(np.argmin(np.abs(lattice - (255, 128, 0)).sum(axis=1)))]
    nearest = np.full(len(lab), np.inf)
    while len(taken) < min(count, len(lab)):
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[taken[-1]], axis=1))
        taken.append(int(np.argmax(nearest)))
    colours = np.rint(lattice[taken]).astype(np.uint8)
    return colours[np.arange(count) % len(colours)]  # more labels than colours: start again


def tint(frame: UInt8, cell_colours: UInt8, strength: float) -> UInt8:
    """A frame in grey under its cells' colours.

    Args:
        frame: (H, W, 3).
        cell_colours: (R, C, 3).
        strength: share of the cell's colour in the mixture, 0 to 1.

    Returns:
        (w·R, w·C, 3), the longer side near PICTURE_SIDE: cell (r, c) is the block [w·r, w·(r+1)) × [w·c, w·(c+1)).
    """
    rows, columns, _ = cell_colours.shape
    width = max(1, round(PICTURE_SIDE / max(rows, columns)))
    resized = Image.fromarray(frame).resize((columns * width, rows * width), Image.Resampling.BICUBIC)
    grey = np.asarray(resized, dtype=np.float64) @ np.array(_LUMA)
    colour = cell_colours.astype(np.float64).repeat(width, axis=0).repeat(width, axis=1)
    mixed: UInt8 = np.rint((1 - strength) * grey[:, :, None] + strength * colour).astype(np.uint8)
    return mixed


def outline_regions(picture: UInt8, labels: AnyArray) -> UInt8:
    """The picture (w·R, w·C, 3) with a dark line wherever neighbouring cells of labels (R, C) differ.

    The lines make the subspaces' shapes readable without telling their colours apart.
    """
    width = len(picture) // len(labels)
    full = labels.repeat(width, axis=0).repeat(width, axis=1)
    edge = np.zeros(full.shape, dtype=bool)
    edge[1:] |= full[1:] != full[:-1]
    edge[:, 1:] |= full[:, 1:] != full[:, :-1]
    outlined = picture.copy()
    outlined[edge] = outlined[edge] // 5
    return outlined


def number_regions(picture: UInt8, labels: AnyArray) -> UInt8:
    """The picture (w·R, w·C, 3) with the label of every connected region of labels (R, C) on it, where it fits.

    A region gets its number on its cell nearest to its middle; regions smaller than a few characters get none.
    """
    width = len(picture) // len(labels)
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=_NUMBER_SIZE)
    for cells in _regions(labels):
        if len(cells) * width * width < _NUMBER_AREA:
            continue
        places = np.array(cells)
        middle = places[np.argmin(((places - places.mean(axis=0)) ** 2).sum(axis=1))]
        y, x = ((middle + 0.5) * width).tolist()
        text = str(labels[cells[0]])
        draw.text((x, y), text, "white", font=font, anchor="mm", stroke_width=2, stroke_fill="black")
    return np.array(image, dtype=np.uint8)


def _regions(labels: AnyArray) -> list[list[tuple[int, int]]]:
    """Cells (row, column) of each region of labels (R, C): equal ones that touch along an edge."""
    left = {(row, column) for row in range(labels.shape[0]) for column in range(labels.shape[1])}
    regions = []
    while left:
        region = [left.pop()]
        for row, column in region:  # grows while it is walked
            for near in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if near in left and labels[near] == labels[row, column]:
                    left.remove(near)
                    region.append(near)
        regions.append(region)
    return regions


def score_pictures(frames: UInt8, sharing_score: AnyArray) -> list[UInt8]:
    """Frames (T, H, W, 3), one for each step of time, with the sharing score (T, R, C) laid over as heat."""
    pairs = zip(frames, sharing_score, strict=True)
    return [tint(frame, heat_colours(cells), _HEAT_STRENGTH) for frame, cells in pairs]


def subspace_pictures(frames: UInt8, labels: AnyArray, colours: dict[int, Colour]) -> list[UInt8]:
    """Frames (T, H, W, 3) with each token's subspace (T, R, C) in its colour, the same in all frames.

    Args:
        colours: label → RGB, for every label that occurs.
    """
    pictures = []
    for frame, cells in zip(frames, labels, strict=True):
        cell_colours = np.array([[colours[int(label)] for label in row] for row in cells], dtype=np.uint8)
        outlined = outline_regions(tint(frame, cell_colours, _SUBSPACE_STRENGTH), cells)
        pictures.append(number_regions(outlined, cells))
    return pictures


def label_colours(labels: AnyArray) -> dict[int, Colour]:
    """Label → colour, the largest subspace first: the largest ones get the colours farthest apart."""
    names, counts = np.unique(labels, return_counts=True)
    order = np.lexsort((names, -counts))
    colours = distinct_colours(len(names))
    return {
        int(names[place]): (int(r), int(g), int(b)) for place, (r, g, b) in zip(order, colours.tolist(), strict=True)
    }


def luminance(colour: Colour) -> float:
    """Relative luminance of an sRGB colour, 0 to 1, as WCAG 2.2 defines it; black and white contrast alike at 0.18."""
    return float(_linear(np.array(colour, dtype=np.float64)) @ np.array(_LUMA))


def data_uri(picture: UInt8) -> str:
    """The picture (H, W, 3) as a `data:` address: JPEG with full colour resolution, so that cells keep their edges."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=84, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _linear(rgb: Float64) -> Float64:
    """sRGB in 0…255 to linear light in 0…1 (IEC 61966-2-1)."""
    encoded = rgb / 255
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def _oklab(rgb: Float64) -> Float64:
    """sRGB (N, 3) in 0…255 to OKLab (N, 3): Björn Ottosson, "A perceptual color space for image processing", 2020."""
    linear = _linear(rgb)
    to_lms = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    lab: Float64 = np.cbrt(linear @ to_lms.T) @ to_lab.T
    return lab
