"""The form of reference.npz: which arrays it holds, and how their types and shapes hang together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from va_export.errors import VaExportError

Array = npt.NDArray[Any]

# Name → kind of type, shape; a letter is one number in all of them. F frames of H × W, S tokens of the prompt, of which
# N are visual and M scored; T answered tokens.
_FORM: Mapping[str, tuple[str, tuple[int | str, ...]]] = {
    "frames": ("u", ("F", "H", "W", 3)),
    "input_ids": ("i", (1, "S")),
    "is_visual": ("b", (1, "S")),
    "is_scored": ("b", (1, "S")),
    "position_ids": ("i", ("axes", 1, "S")),
    "next_position": ("i", ()),
    "grid": ("i", ("G",)),
    "visual_tokens": ("f", ("N", "width")),
    "sharing_score": ("f", ("M",)),
    "labels": ("i", ("M",)),
    "key_log_gain": ("f", ("S",)),
    "value_gain": ("f", ("S",)),
    "anchored_tokens": ("i", ("T",)),
    "anchored_logits": ("f", ("T", "vocab_size")),
    "plain_tokens": ("i", ("T",)),
    "plain_logits": ("f", ("T", "vocab_size")),
}
_FIX = "copy or export the bundle again"


def check_form(arrays: Mapping[str, Array], path: Path, needed: Iterable[str] = ()) -> dict[str, int]:
    """Hold arrays against the form; those that `needed` does not name may be absent. Returns the sizes by letter.

    Raises:
        VaExportError: naming the array and what it should be.
    """
    sizes: dict[str, int] = {}
    for name in needed:
        if name not in arrays:
            raise VaExportError(f"the reference lacks the array {name}", where=path, fix=_FIX)
    for name, (kind, shape) in _FORM.items():
        if name not in arrays:
            continue
        array = arrays[name]
        expected = tuple(sizes.get(size, size) if isinstance(size, str) else size for size in shape)
        fits = array.dtype.kind == kind and array.dtype.isnative and array.ndim == len(shape)
        if not fits or any(isinstance(a, int) and a != b for a, b in zip(expected, array.shape, strict=True)):
            raise VaExportError(
                f"the reference's {name} is {array.dtype} of shape {array.shape}; expected is type {kind!r} of"
                f" shape ({', '.join(map(str, expected))})",
                where=f"{path}: {name}",
                fix=_FIX,
            )
        sizes |= {size: length for size, length in zip(shape, array.shape, strict=True) if isinstance(size, str)}
        if not array.size and name != "grid":
            raise VaExportError(f"the reference's {name} is empty", where=f"{path}: {name}", fix=_FIX)
    grid = arrays.get("grid")
    if grid is not None and grid.size and (grid.size != 3 or grid.min() < 1):
        raise VaExportError(
            f"the reference's grid is {grid.tolist()}, not steps, rows and columns", where=f"{path}: grid", fix=_FIX
        )
    return sizes


def check_reference(arrays: Mapping[str, Array], path: Path, vocab_size: int | None) -> None:
    """Hold a whole reference against the form, and its arrays against each other.

    Args:
        vocab_size: of the bundle; None does not look at the ids.

    Raises:
        VaExportError: naming what does not fit.
    """
    sizes = check_form(arrays, path, needed=_FORM)
    visual, scored = arrays["is_visual"], arrays["is_scored"]
    ids = np.concatenate([arrays[name].reshape(-1) for name in ("input_ids", "anchored_tokens", "plain_tokens")])
    faults = {
        f"{sizes['N']} visual tokens for {visual.sum()} places": sizes["N"] != visual.sum(),
        f"{sizes['M']} scores for {scored.sum()} scored places": sizes["M"] != scored.sum(),
        "scored places that are not visual": bool((scored & ~visual).any()),
        "a grid that the scored tokens do not fill": sizes["G"] > 0
        and math.prod(map(int, arrays["grid"])) > sizes["M"],
        "ids outside of the vocabulary": vocab_size is not None and (ids.min() < 0 or ids.max() >= vocab_size),
        "logits of another vocabulary": vocab_size is not None and sizes["vocab_size"] != vocab_size,
        "negative labels": bool((arrays["labels"] < 0).any()),
    }
    for what, is_fault in faults.items():
        if is_fault:
            raise VaExportError(f"the reference has {what}", where=path, fix=_FIX)
