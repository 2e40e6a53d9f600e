"""Where every weight of a graph lies in its data file, decided before the first weight is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch

from va_export.bundle.journal import Record
from va_export.documents import Form
from va_export.passes.weight_marks import is_transposed, is_weight

_TORCH_FROM_IR = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
}
# Large tensors begin at a page, so that a runtime can map them; small ones at a cache line.
_LARGE, _PAGE, _LINE = 1 << 20, 4096, 64


class WeightSlot(Form, frozen=True):
    """One weight's place.

    Attributes:
        name: the weight's, as in the graph and in the family's weight map.
        dtype: ONNX's name of the type: `FLOAT`, `FLOAT16` or `BFLOAT16`.
        shape: as written; turned round if `transposed`.
        offset, length: bytes of the data file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    transposed: bool
    offset: int
    length: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type as PyTorch's."""
        return _TORCH_FROM_IR[ir.DataType[self.dtype]]


class Traced(Record, frozen=True, tag="graph"):
    """A component's graph, written, in the journal of an unfinished export.

    Attributes:
        graph: its file's SHA-256.
        nodes: how many it has.
        key: plain data that tells apart graphs of one name.
    """

    name: str
    graph: str
    nodes: int
    slots: tuple[WeightSlot, ...]
    key: Any = None


def layout_weights(model: ir.Model) -> tuple[WeightSlot, ...]:
    """A slot for every weight of a traced graph, in the graph's order."""
    slots: list[WeightSlot] = []
    end = 0
    for value in model.graph.initializers.values():
        if not is_weight(value):
            continue
        assert value.shape is not None and value.dtype is not None and value.name is not None
        shape = tuple(int(length) for length in value.shape)  # type: ignore[arg-type]  # weights have no symbols
        length = math.prod(shape) * _TORCH_FROM_IR[value.dtype].itemsize
        boundary = _PAGE if length >= _LARGE else _LINE
        offset = -(-end // boundary) * boundary
        slots.append(WeightSlot(value.name, value.dtype.name, shape, is_transposed(value), offset, length))
        end = offset + length
    return tuple(slots)


def data_bytes(slots: Sequence[WeightSlot]) -> int:
    """Size of the data file."""
    return slots[-1].offset + slots[-1].length if slots else 0
