"""What a component takes and gives, as plain data: names, types, shapes, and the ranges of their symbolic dimensions.

It stands in the manifest, so that a runtime in any language reads it instead of knowing it.
"""

from __future__ import annotations

from typing import Literal

from va_export.documents import Form

DataType = Literal["float32", "float16", "bfloat16", "int64", "bool"]


class TensorInfo(Form, frozen=True, kw_only=False):
    """An input or output.

    Attributes:
        dtype: NumPy's name of the type, or bfloat16.
        shape: its dimensions, symbolic ones by name.
    """

    name: str
    dtype: DataType
    shape: tuple[int | str, ...]


class DimensionRange(Form, frozen=True, kw_only=False):
    """The sizes of one symbolic dimension: the smallest, the one that is tuned for, the largest."""

    min: int
    opt: int
    max: int


# Profile name → symbolic dimension → range. An engine has one optimisation profile for each.
Profiles = dict[str, dict[str, DimensionRange]]
