"""What a caller may give to `Bundle.generate`, as arrays of the types that backends take, or an error naming it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from va_export.bundle.document import ComponentEntry
from va_export.errors import VaExportError
from va_export.runtime import values

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

# A pixel over its channel's standard deviation: at most 5 with those of published models. What is larger was not
# normalised.
_LARGEST_PIXEL = 32.0
_LEAST_ALPHA, _ALPHA_BELOW = -1.0, 1e4  # as for the gains of a recipe (settings.py)


def prompt_ids(given: npt.ArrayLike | None, vocab_size: int, marker: int | None = None) -> Int64:
    """The ids of one prompt, (1, S).

    Args:
        marker: an id outside of the vocabulary that it may hold.

    Raises:
        VaExportError: none, several prompts, or no ids of the vocabulary.
    """
    if given is None:
        raise VaExportError("generate needs input_ids", where="input_ids", fix="make them with Bundle.prompt")
    if marker is None:
        return one_row("input_ids", given, vocab_size)
    array = _array("input_ids", given)
    is_marked = array == marker
    ids = one_row("input_ids", np.where(is_marked, 0, array), vocab_size)
    ids[is_marked.reshape(ids.shape)] = marker
    return ids


def one_row(name: str, given: npt.ArrayLike, vocab_size: int) -> Int64:
    """Token ids (1, S) from (S,) or (1, S).

    Raises:
        VaExportError: another shape, none, not whole numbers, or outside of the vocabulary.
    """
    ids = _array(name, given)
    if ids.ndim not in (1, 2) or ids.shape[0] != 1 != ids.ndim or not ids.size:
        raise VaExportError(
            f"{name} has shape {ids.shape}; one row of ids is expected, (S,) or (1, S)",
            where=name,
            fix="give the ids of one prompt",
        )
    if not np.issubdtype(ids.dtype, np.integer):
        raise VaExportError(
            f"{name} has values of type {ids.dtype}; token ids are whole numbers", where=name, fix="give integers"
        )
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise VaExportError(
            f"{name} has ids outside of [0, {vocab_size})", where=name, fix="make them with the bundle's tokenizer"
        )
    return ids.reshape(1, -1).astype(np.int64)


def frame_count(count: int, max_frames: int) -> None:
    """Refuse more frames than a bundle's engines take.

    Raises:
        VaExportError: more than `max_frames`.
    """
    if count > max_frames:
        raise VaExportError(
            f"{count} frames are more than this bundle's max_frames ({max_frames})",
            where="frames",
            fix="use fewer frames, or export with a larger --max-frames",
        )


def pixels(given: npt.ArrayLike, image_size: int, max_frames: int) -> Float32:
    """Normalised frames (F, 3, image_size, image_size).

    Raises:
        VaExportError: another shape, more than `max_frames`, whole numbers or other values that no normalised frame
            has, or values that are not finite.
    """
    array = _normalised(given)
    if array.ndim != 4 or array.shape[1:] != (3, image_size, image_size) or not len(array):
        raise VaExportError(
            f"pixel_values has shape {array.shape}; this bundle takes (frames, 3, {image_size}, {image_size})",
            where="pixel_values",
            fix="give what bundle.processing.pixel_values(frames) makes of frames",
        )
    frame_count(len(array), max_frames)
    return _pixel_range(array)


def patches(given: npt.ArrayLike, count: int, width: int) -> Float32:
    """Normalised patches (count, width).

    Raises:
        VaExportError: another shape, or values that no normalised patch has.
    """
    array = _normalised(given)
    if array.shape != (count, width):
        raise VaExportError(
            f"pixel_values has shape {array.shape}; grid_thw asks for ({count}, {width})",
            where="pixel_values",
            fix="give what bundle.processing.given(frames) makes of frames",
        )
    return _pixel_range(array)


def grids(given: npt.ArrayLike, merge: int) -> Int64:
    """Grids (n, 3): steps of time, rows and columns of patches.

    Raises:
        VaExportError: another shape, no whole numbers, or sides that patches cannot be merged in.
    """
    array = _array("grid_thw", given)
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or array.shape[1] != 3 or not len(array) or array.dtype.kind not in "ui":
        raise VaExportError(
            f"grid_thw is {array.dtype} of shape {array.shape}; expected are whole numbers of shape (n, 3)",
            where="grid_thw",
            fix="give steps of time, rows and columns of patches for each video and image",
        )
    if array.min() < 1 or array.max() >= 1 << 20 or (array[:, 1:] % merge).any():
        raise VaExportError(
            f"grid_thw has {array.tolist()}; rows and columns must be multiples of {merge}, and all at least 1",
            where="grid_thw",
            fix="give what bundle.processing.given(frames) makes of frames",
        )
    return array.astype(np.int64)


def seconds(given: npt.ArrayLike, in_prompt: bool) -> Float32:
    """Seconds between the grids of each video, (n,).

    Args:
        in_prompt: whether the model reads times in its prompt, and nowhere else.

    Raises:
        VaExportError: no numbers, not above 0 and below a day, or of no use.
    """
    if in_prompt:
        raise VaExportError(
            "this model reads times in the prompt, and its positions do not depend on them",
            where="seconds_per_grid",
            fix="leave it out",
        )
    array = _floats("seconds_per_grid", _array("seconds_per_grid", given)).reshape(-1)
    if not array.size or not (np.isfinite(array).all() and array.min() > 0 and array.max() < 86400):
        raise VaExportError(
            f"seconds_per_grid is {array.tolist()}; expected are numbers above 0",
            where="seconds_per_grid",
            fix="give one for each video",
        )
    return array


def _normalised(given: npt.ArrayLike) -> Float32:
    """Pixels as floats; whole numbers are no normalised pixels."""
    array = _array("pixel_values", given)
    if array.dtype.kind in "ui":
        raise VaExportError(
            f"pixel_values has values of type {array.dtype}, as frames have before they are normalised",
            where="pixel_values",
            fix="give what bundle.processing makes of frames",
        )
    return _floats("pixel_values", array)


def _pixel_range(array: Float32) -> Float32:
    """Pixels as they are, if they can be normalised ones."""
    if not np.isfinite(array).all():
        raise VaExportError(
            "pixel_values has NaN or infinite values", where="pixel_values", fix="look where they come from"
        )
    if (largest := float(np.abs(array).max())) > _LARGEST_PIXEL:
        raise VaExportError(
            f"pixel_values has values up to {largest:g}; those of normalised frames are below {_LARGEST_PIXEL:g}",
            where="pixel_values",
            fix="give what bundle.processing makes of frames",
        )
    return array


def alphas(
    alpha_k: float | None, alpha_v: float | None, key_log_gain: object, value_gain: object
) -> tuple[float | None, float | None]:
    """Both alphas as Python floats, or None where none is given.

    Raises:
        VaExportError: no number, outside of what a recipe may say, or beside the gains that it would make.
    """
    checked: list[float | None] = []
    for name, alpha, other, gains in (
        ("alpha_k", alpha_k, "key_log_gain", key_log_gain),
        ("alpha_v", alpha_v, "value_gain", value_gain),
    ):
        if alpha is not None and gains is not None:
            raise VaExportError(f"{name} contradicts {other}", where=name, fix="leave one of them out")
        checked.append(None if alpha is None else values.number(name, alpha, least=_LEAST_ALPHA, below=_ALPHA_BELOW))
    return checked[0], checked[1]


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


def gain(name: str, given: npt.ArrayLike, length: int) -> Float32:
    """One gain a prompt position, (length,); a key's logarithm may be -inf, which removes the key.

    Raises:
        VaExportError: another shape, values that are not finite, or a gain below 0.
    """
    array = _floats(name, _array(name, given))
    if array.shape not in ((length,), (1, length)):
        raise VaExportError(
            f"{name} has shape {array.shape}; the prompt has {length} positions", where=name, fix="give one a position"
        )
    if np.isnan(array).any() or np.isposinf(array).any() or (name == "value_gain" and not np.isfinite(array).all()):
        raise VaExportError(f"{name} has NaN or infinite values", where=name, fix="look where they come from")
    if name == "key_log_gain" and np.isneginf(array).all():
        raise VaExportError("key_log_gain removes every key", where=name, fix="leave some above -inf")
    return array.reshape(-1)


def _array(name: str, given: npt.ArrayLike) -> npt.NDArray[Any]:
    """Whatever NumPy makes an array of: arrays and tensors on the host, sequences, buffers."""
    if isinstance(given, np.ma.MaskedArray):
        raise VaExportError(f"{name} is a masked array", where=name, fix="fill it, with what is meant")
    try:
        return np.asarray(given)
    except MemoryError:
        raise
    except Exception as error:  # PyTorch raises bare RuntimeErrors for tensors that require a gradient
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise VaExportError(f"{name} is not an array: {reason}", where=name, fix="give a NumPy array") from error


def _floats(name: str, array: npt.NDArray[Any]) -> Float32:
    """As float32; whole numbers count as numbers, and ml_dtypes' bfloat16 is a float, whatever NumPy calls its kind."""
    if array.dtype.kind not in "uif" and array.dtype.name != "bfloat16":
        raise VaExportError(
            f"{name} has values of type {array.dtype}, not real numbers", where=name, fix="give float32 values"
        )
    with np.errstate(over="ignore"):  # becomes infinite, and is refused as that
        return np.ascontiguousarray(array, dtype=np.float32)


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
                if size != dimension:
                    raise VaExportError(
                        f"{tensor.name} has shape {list(inputs[tensor.name].shape)};"
                        f" this bundle takes {list(tensor.shape)}",
                        where="generate",
                        fix="export the bundle again: its processing.json does not fit its graphs",
                    )
                continue
            ranges = [sizes[dimension] for sizes in component.ranges.values() if dimension in sizes]
            if not ranges:
                raise VaExportError(
                    f"the manifest gives no range for {dimension}, a dimension of {tensor.name}",
                    where="manifest.json: components",
                    fix="copy or export the bundle again",
                )
            low, high = min(r.min for r in ranges), max(r.max for r in ranges)
            if not low <= size <= high:
                raise VaExportError(
                    f"{tensor.name} has {size} in {dimension}; this bundle takes {low} to {high}",
                    where="generate",
                    fix="use fewer or smaller frames, or export with larger limits (--max-frames, --max-pixels)",
                )
