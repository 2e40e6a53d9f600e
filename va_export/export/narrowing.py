"""Weights in fewer bits, and what that loses: values beyond the range, values that vanish, values that lose precision.

The counts are taken from the bit patterns of the source: without its sign bit a floating-point number orders as an
integer does, so that every question is one comparison of integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from msgspec import structs

from va_export.checkpoint.files import uninitialised
from va_export.documents import Form

# Compared and converted at a time: small enough for a core's cache, so that further passes cost little.
_PART = 1 << 17
_BITS: dict[torch.dtype, tuple[torch.dtype, type[np.unsignedinteger[Any]]]] = {
    torch.float32: (torch.int32, np.uint32),
    torch.float16: (torch.int16, np.uint16),
    torch.bfloat16: (torch.int16, np.uint16),
}


class Loss(Form, frozen=True):
    """What one tensor loses; all but `largest` are numbers of elements.

    Attributes:
        elements: all of them.
        not_finite: NaN or infinite already in the source.
        overflow: finite, and beyond what the target can hold.
        to_zero: not zero in the source, zero in the target.
        to_subnormal: subnormal in the target, with fewer significant bits, and not in the source.
        largest: the largest finite magnitude in the source.
    """

    elements: int = 0
    not_finite: int = 0
    overflow: int = 0
    to_zero: int = 0
    to_subnormal: int = 0
    largest: float = 0.0

    def __add__(self, other: Loss) -> Loss:
        """Of two parts of one tensor."""
        sums = {name: value + getattr(other, name) for name, value in structs.asdict(self).items() if name != "largest"}
        return Loss(**sums, largest=max(self.largest, other.largest))

    @property
    def fits(self) -> bool:
        """Whether every value fits, if perhaps less precisely."""
        return not (self.not_finite or self.overflow)


@dataclass(frozen=True)
class _Bounds:
    """Magnitudes of the source, as bit patterns: what happens from or below each."""

    infinite: int  # from here: infinity, NaN
    overflow: int  # from here: rounds to infinity
    zero: int  # below: rounds to zero (zero itself is told apart)
    subnormal: int  # below: rounds to a subnormal number or to zero


def narrow(values: torch.Tensor, dtype: torch.dtype, *, clip: bool = False) -> tuple[torch.Tensor, Loss]:
    """`values` as `dtype`, rounded to nearest even, and what that loses.

    Args:
        values: contiguous, float32, float16 or bfloat16.
        clip: give values beyond the range the largest number of the range, not infinity.
    """
    loss = measure(values, dtype)
    result = values if values.dtype == dtype else _converted(values, dtype)
    if clip and loss.overflow:
        limit = torch.finfo(dtype).max
        result = result.clamp(-limit, limit)
    return result, loss


def _converted(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A copy as `dtype`. From one 16-bit type to the other it goes through float32, which holds both: PyTorch has no
    vector instructions for the direct way, and takes twice as long."""
    result = uninitialised(values.shape, dtype)
    source, target = values.reshape(-1), result.reshape(-1)
    for start in range(0, len(source), _PART):
        target[start : start + _PART] = source[start : start + _PART].to(torch.float32)
    return result


def measure(values: torch.Tensor, dtype: torch.dtype) -> Loss:
    """What `narrow` would lose."""
    signed, unsigned = _BITS[values.dtype]
    bits = values.reshape(-1).view(signed).numpy().view(unsigned)
    bounds = _bounds(values.dtype, dtype)
    loss = Loss(elements=len(bits))
    scratch = np.empty(min(_PART, len(bits)), unsigned)
    largest = 0
    for start in range(0, len(bits), _PART):
        part = bits[start : start + _PART]
        magnitude = np.bitwise_and(part, unsigned(2 ** (8 * part.itemsize - 1) - 1), out=scratch[: len(part)])
        top = int(magnitude.max())
        if top >= bounds.overflow:
            not_finite = _count(magnitude >= unsigned(bounds.infinite))
            overflow = _count(magnitude >= unsigned(bounds.overflow)) - not_finite
            loss = structs.replace(loss, not_finite=loss.not_finite + not_finite, overflow=loss.overflow + overflow)
            finite = magnitude[magnitude < unsigned(bounds.infinite)]
            top = int(finite.max()) if len(finite) else 0
        largest = max(largest, top)
        if bounds.subnormal > 1:
            # Zero wraps round to the largest integer, so that it is not counted as a small value.
            np.subtract(magnitude, unsigned(1), out=magnitude)
            small = _count(magnitude < unsigned(bounds.subnormal - 1))
            if small:
                gone = _count(magnitude < unsigned(bounds.zero - 1)) if bounds.zero > 1 else 0
                loss = structs.replace(loss, to_zero=loss.to_zero + gone, to_subnormal=loss.to_subnormal + small - gone)
    pattern = torch.from_numpy(np.array([largest], unsigned).view(f"i{bits.itemsize}"))
    return structs.replace(loss, largest=float(pattern.view(values.dtype)))


def _count(mask: npt.NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(mask))


@cache
def _bounds(source: torch.dtype, target: torch.dtype) -> _Bounds:
    infinite = _pattern(float("inf"), source)
    goal, origin = torch.finfo(target), torch.finfo(source)
    if origin.max <= goal.max and origin.smallest_normal * origin.eps >= goal.smallest_normal * goal.eps:
        return _Bounds(infinite, infinite, 0, 0)  # the target's range holds the source's
    step = goal.smallest_normal * goal.eps  # between subnormal numbers
    # Halfway between the largest number and the next that there would be: ties go to the even one, which is beyond.
    beyond = goal.max + goal.max * goal.eps / (2 - goal.eps) / 2
    overflow = min(infinite, _pattern(beyond, source)) if beyond <= origin.max else infinite
    # Half a step is a tie, and goes to zero; half a step below the smallest normal number goes up to that.
    return _Bounds(
        infinite,
        overflow,
        _pattern(step / 2, source) + 1 if _holds(step / 2, source) else _pattern(step / 2, source),
        _pattern(goal.smallest_normal - step / 2, source),
    )


def _holds(value: float, dtype: torch.dtype) -> bool:
    return float(torch.tensor(value, dtype=torch.float64).to(dtype)) == value


def _pattern(value: float, dtype: torch.dtype) -> int:
    """The bit pattern of the smallest number of `dtype` that is not below `value` (positive)."""
    signed, _ = _BITS[dtype]
    number = torch.tensor([value], dtype=torch.float64).to(dtype)
    pattern = int(number.view(signed))
    return pattern if float(number) >= value else pattern + 1
