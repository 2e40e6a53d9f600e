"""Write a traced graph whose weights are to follow in a file beside it."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx.checker
import onnx_ir as ir

from va_export.errors import VaExportError
from va_export.graph.weight_layout import WeightSlot
from va_export.ops import anchored_attention, subspace_score


def data_path(path: Path) -> Path:
    """The file of weights that belongs to an ONNX file."""
    return path.with_name(f"{path.name}.data")


def write_graph(model: ir.Model, path: Path, slots: Sequence[WeightSlot]) -> None:
    """Write `path`, the graph, which refers to `data_path(path)` for the weights in `slots`; needs no weight."""
    weights = model.graph.initializers
    for slot in slots:
        value = weights[slot.name]
        assert value.shape is not None and value.dtype is not None
        value.const_value = ir.ExternalTensor(
            data_path(path).name,
            slot.offset,
            slot.length,
            value.dtype,
            shape=value.shape,
            name=slot.name,
            base_dir=path.parent,
        )
    ir.save(model, path)


def reserve(path: Path, size: int) -> None:
    """Make a file of `size` bytes and take its blocks from the disk now, so that a full disk shows before the work.

    Raises:
        OSError: the disk is full, or files may not be so large.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.ftruncate(descriptor, size)
        if size:
            os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # the file system cannot reserve
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)


def check_onnx(path: Path) -> None:
    """Run `onnx.checker` with full shape inference over a file that was just written; its data file must exist, its
    weights need not be there yet.

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
