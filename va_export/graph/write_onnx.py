"""Stream a checkpoint's weights into a traced graph while it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import onnx.checker
import onnx_ir as ir
import torch

from va_export.checkpoint import Checkpoint
from va_export.errors import VaExportError
from va_export.models.family import WeightSource
from va_export.ops import anchored_attention, subspace_score
from va_export.passes.weights import is_transposed, is_weight

_TORCH_FROM_IR = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
}


def write_onnx(
    model: ir.Model,
    path: Path,
    checkpoint: Checkpoint,
    weight_map: Mapping[str, WeightSource],
    on_weight: Callable[[str, int], None] | None = None,
) -> None:
    """Write `path` (the graph) and `path`.data (the weights), one tensor in memory at a time.

    Args:
        model: a traced graph; every weight in it is named as in `weight_map`.
        on_weight: called with a weight's name and its size in bytes when it has been written.

    Raises:
        VaExportError: a weight is missing, not finite, or does not fit the precision.
    """
    for value in list(model.graph.initializers.values()):
        if is_weight(value):
            assert value.name is not None
            value.const_value = _streamed(value, checkpoint, weight_map[value.name])
    # One worker: the tensors are cut from shared, memory-mapped files, and one at a time bounds the memory.
    ir.save(
        model,
        path,
        external_data=f"{path.name}.data",
        size_threshold_bytes=1024,
        max_workers=1,
        callback=None if on_weight is None else (lambda tensor, _: on_weight(tensor.name or "", tensor.nbytes)),
    )


def _streamed(value: ir.Value, checkpoint: Checkpoint, source: WeightSource) -> ir.LazyTensor:
    assert value.shape is not None and value.dtype is not None and value.name is not None
    name, dtype, transposed = value.name, value.dtype, is_transposed(value)

    def load() -> ir.TensorProtocol:
        wide = source.view(checkpoint.tensor(source.checkpoint_name))
        narrow = wide.to(_TORCH_FROM_IR[dtype])
        if not torch.isfinite(narrow).all():
            largest = float(wide.abs().max())
            raise VaExportError(
                f"weight {name} has values up to {largest:g}, which {dtype.name.lower()} cannot hold",
                where=source.checkpoint_name,
                fix="export with --precision bf16 or --precision fp32",
            )
        array = (narrow.T if transposed else narrow).contiguous()
        return ir.tensor(array, dtype=dtype, name=name)

    return ir.LazyTensor(load, dtype=dtype, shape=value.shape, name=name)


def check_onnx(path: Path) -> None:
    """Run `onnx.checker` with full shape inference over a file that was just written.

    Raises:
        VaExportError: the checker's own words; this is a bug of the exporter, not of its input.
    """
    anchored_attention.schema(), subspace_score.schema()  # the checker needs the custom ops'
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # the checker and shape inference each have their own type
        raise VaExportError(
            f"the written graph is not valid ONNX: {error}", where=path, fix="please report this"
        ) from error
