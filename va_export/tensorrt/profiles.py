"""Optimisation profiles: the ranges of shapes that an engine accepts, and the shapes it is tuned for.

Ranges are stated per symbolic dimension of the ONNX file (`frames`, `visual_count`, `batch`, `sequence`); a
profile gives every input its shapes from them. The cache's `capacity` has no range: TensorRT wants it static,
so it is written into the graph before parsing (see `prepare_onnx`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from va_export.bundle.tensors import DimensionRange
from va_export.documents import Form
from va_export.errors import VaExportError

CAPACITY = "capacity"


class ShapeRange(Form, frozen=True):
    """The smallest, the tuned and the largest shape of one input."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def __post_init__(self) -> None:
        ordered = all(low <= mid <= high for low, mid, high in zip(self.min, self.opt, self.max, strict=True))
        if not ordered or any(size < 0 for size in self.min):
            raise VaExportError(
                f"the shapes {self.min}, {self.opt}, {self.max} are not in ascending order", where="min, opt, max"
            )


class Profile(Form, frozen=True):
    """One optimisation profile: a range for every input that has a dynamic dimension."""

    name: str
    ranges: Mapping[str, ShapeRange]


def shape_profiles(
    input_shapes: Mapping[str, Sequence[int | str]], ranges: Mapping[str, Mapping[str, DimensionRange]]
) -> tuple[Profile, ...]:
    """Profiles for the inputs of one ONNX file.

    Args:
        input_shapes: per input its dimensions; a symbolic one by name.
        ranges: profile name → symbolic dimension → range, as from a component's `ranges`.

    Returns:
        one profile a name, or none at all when every shape is static.

    Raises:
        VaExportError: an input has a symbolic dimension without a range.
    """
    dynamic = {name: shape for name, shape in input_shapes.items() if any(isinstance(d, str) for d in shape)}
    if not dynamic:
        return ()
    return tuple(
        Profile(profile, {name: _shape_range(name, shape, sizes) for name, shape in dynamic.items()})
        for profile, sizes in ranges.items()
    )


def _shape_range(name: str, shape: Sequence[int | str], sizes: Mapping[str, DimensionRange]) -> ShapeRange:
    if missing := [d for d in shape if isinstance(d, str) and d not in sizes]:
        raise VaExportError(
            f"input {name} has the dynamic dimension {missing[0]!r}, for which no range is known",
            where=name,
            fix=f"known dimensions: {', '.join(sizes)}",
        )

    def at(which: str) -> tuple[int, ...]:
        return tuple(getattr(sizes[d], which) if isinstance(d, str) else d for d in shape)

    return ShapeRange(at("min"), at("opt"), at("max"))
