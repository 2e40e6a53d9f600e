"""Fold constants, share common subexpressions, and drop what nothing uses.

    Cast(Constant), Reshape(Constant, …), Shape of static axes, …  →  Constant
    two nodes with the same inputs and attributes                  →  one

Weights take no part: they have no values when this runs. The op's function body is kept apart, or the optimizer would
inline it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    IdentityEliminationPass,
    RemoveUnusedNodesPass,
)
from onnxscript import optimizer


@contextmanager
def _without_weight_warnings() -> Iterator[None]:
    """One of the optimizer's passes warns of every initializer that has no value, which here is every weight."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def fold_constants(model: ir.Model) -> None:
    """Run the optimizer of onnxscript to its fixed point, then onnx_ir's clean-up passes."""
    functions = dict(model.functions)
    model.functions.clear()
    with _without_weight_warnings():
        optimizer.optimize_ir(model, num_iterations=3, onnx_shape_inference=False, inline=False)
    CommonSubexpressionEliminationPass()(model)
    IdentityEliminationPass()(model)
    RemoveUnusedNodesPass()(model)
    model.functions.update(functions)
