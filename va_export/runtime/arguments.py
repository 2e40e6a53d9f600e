"""What a caller may give to `Bundle.generate`, as arrays of the types that backends take, or an error naming it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from va_export.bundle.document import ComponentEntry
from va_export.errors import VaExportError

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


def token_ids(name: str, values: npt.ArrayLike, vocab_size: int) -> Int64:
    """Token ids as int64, of the shape that was given.

    Raises:
        VaExportError: not whole numbers, or outside of the vocabulary.
    """
    ids = np.asarray(values)
    if ids.size and not np.issubdtype(ids.dtype, np.integer):
        raise VaExportError(f"{name} has values of type {ids.dtype}; token ids are whole numbers", where="generate")
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        raise VaExportError(f"{name} has ids outside of [0, {vocab_size})", where="generate")
    return ids.astype(np.int64)


def prompt_ids(values: npt.ArrayLike | None, vocab_size: int) -> Int64:
    """The ids of one prompt, (1, S).

    Raises:
        VaExportError: none, several prompts, or no ids of the vocabulary.
    """
    if values is None:
        raise VaExportError("generate needs input_ids", where="generate", fix="make them with Bundle.prompt")
    ids = np.atleast_2d(token_ids("input_ids", values, vocab_size))
    if ids.ndim != 2 or ids.shape[0] != 1 or ids.shape[1] < 1:
        raise VaExportError(
            f"input_ids has shape {ids.shape}; generate takes one prompt, (S,) or (1, S)",
            where="generate",
            fix="give one prompt, or several to answer_batch",
        )
    return ids


def pixels(values: npt.ArrayLike, image_size: int, max_frames: int) -> Float32:
    """Normalised frames (F, 3, image_size, image_size).

    Raises:
        VaExportError: another shape, more than `max_frames`, or values that are not finite.
    """
    array = _floats("pixel_values", values)
    if array.ndim != 4 or array.shape[1:] != (3, image_size, image_size) or not len(array):
        raise VaExportError(
            f"pixel_values has shape {array.shape}; this bundle takes (frames, 3, {image_size}, {image_size})",
            where="generate",
        )
    if len(array) > max_frames:
        raise VaExportError(
            f"{len(array)} frames are more than this bundle's max_frames ({max_frames})",
            where="generate",
            fix="use fewer frames, or export with a larger --max-frames",
        )
    if not np.isfinite(array).all():
        raise VaExportError("pixel_values has NaN or infinite values", where="generate")
    return array


def finite_tokens(visual_tokens: Float32, precision: str) -> Float32:
    """Visual tokens as they are.

    Raises:
        VaExportError: values that are not finite, as float16 gives where an activation passes 65504.
    """
    bad = int((~np.isfinite(visual_tokens)).sum())
    if bad:
        raise VaExportError(
            f"the vision component gave {bad} NaN or infinite values of {visual_tokens.size} in {precision}",
            where="generate",
            fix="export with --precision bf16 or --precision fp32, whose range is larger",
        )
    return visual_tokens


def gain(name: str, values: npt.ArrayLike, length: int) -> Float32:
    """One gain a prompt position, (length,); a key's logarithm may be -inf, which removes the key.

    Raises:
        VaExportError: another length, or values that are not finite.
    """
    array = _floats(name, values).reshape(-1)
    if array.shape != (length,):
        raise VaExportError(f"{name} has {array.size} values; the prompt has {length} positions", where="generate")
    if np.isnan(array).any() or np.isposinf(array).any() or (name == "value_gain" and not np.isfinite(array).all()):
        raise VaExportError(f"{name} has NaN or infinite values", where="generate")
    return array


def _floats(name: str, values: npt.ArrayLike) -> Float32:
    try:
        return np.ascontiguousarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise VaExportError(f"{name} is not an array of numbers: {error}", where="generate") from error


def check_ranges(component: ComponentEntry, inputs: Mapping[str, npt.NDArray[Any]]) -> None:
    """Hold inputs against what a component takes: names, ranks, fixed sizes and the ranges of the others.

    Raises:
        VaExportError: naming the input and what it may be.
    """
    for tensor in component.inputs:
        if tensor.name not in inputs or inputs[tensor.name].ndim != len(tensor.shape):
            raise VaExportError(f"{tensor.name} is missing or not of shape {tensor.shape}", where="generate")
        for size, dimension in zip(inputs[tensor.name].shape, tensor.shape, strict=True):
            if isinstance(dimension, int):
                low = high = dimension
            else:
                ranges = [sizes[dimension] for sizes in component.ranges.values() if dimension in sizes]
                low, high = min(r.min for r in ranges), max(r.max for r in ranges)
            if not low <= size <= high:
                raise VaExportError(
                    f"{tensor.name} has {size} in {dimension}; this bundle takes {low} to {high}",
                    where="generate",
                    fix="use fewer frames, or export with larger limits (--max-frames)",
                )
