"""Component → ONNX graph without weights.

The model is traced on fake tensors, so a 40-GB model costs what its graph costs. The initializers keep the names of
the Hugging Face parameters; `stream_weights.py` streams their values in when the file is written.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from va_export.bundle.tensors import TensorInfo
from va_export.graph import kv_cache
from va_export.models.component import Component
from va_export.models.family import ModelFamily, ModelSpec
from va_export.ops import anchored_attention
from va_export.ops.declaration import DOMAIN, VERSION

OPSET = 24  # the first with TensorScatter and Attention's nonpad_kv_seqlen
IR_VERSION = 11  # opset 24's; the newest that TensorRT's parser and ONNX Runtime both read
TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Lengths of symbolic dimensions in the traced example, by order of appearance: distinct from each other and from 1, so
# that no two symbols are taken for one.
_EXAMPLE_LENGTHS = (2, 3, 17, 5, 11, 13)


class FakeModel:
    """A Hugging Face model without weights, to trace components from."""

    def __init__(self, family: ModelFamily, spec: ModelSpec, precision: str) -> None:
        self._mode = FakeTensorMode()
        with _quiet_exporter(), self._mode, torch.no_grad(), _default_dtype(TORCH_DTYPES[precision]):
            self.hf: Any = family.build_model(spec).eval()

    def trace(self, component: Component) -> ir.Model:
        """Trace a component of this model to an ONNX model without weights."""
        with _quiet_exporter(), self._mode, torch.no_grad():
            assert component.build is not None
            module = component.build(self.hf)
            program = torch.export.export(
                module, _examples(component), dynamic_shapes=_dynamic_shapes(component, module), strict=False
            )
            onnx_program = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                optimize=False,  # folding would read the weights, and there are none; passes/ does what is needed
                verbose=False,
                custom_translation_table={**anchored_attention.onnx_translation(), **kv_cache.onnx_translation()},
            )
        assert onnx_program is not None  # only None when it writes a file itself
        return _named(onnx_program.model, component, program.state_dict)


def _symbols(tensor: TensorInfo) -> dict[int, str]:
    """Axis → name of its symbolic dimension."""
    return {axis: dim for axis, dim in enumerate(tensor.shape) if isinstance(dim, str)}


def _examples(component: Component) -> tuple[torch.Tensor, ...]:
    names = dict.fromkeys(name for tensor in component.inputs for name in _symbols(tensor).values())
    lengths = dict(zip(names, _EXAMPLE_LENGTHS, strict=False))
    return tuple(
        torch.zeros(
            [lengths[dim] if isinstance(dim, str) else dim for dim in tensor.shape], dtype=getattr(torch, tensor.dtype)
        )
        for tensor in component.inputs
    )


def _dynamic_shapes(component: Component, module: torch.nn.Module) -> tuple[object, ...]:
    dims = {name: torch.export.Dim(name) for tensor in component.inputs for name in _symbols(tensor).values()}
    per_input = [{axis: dims[dim] for axis, dim in _symbols(tensor).items()} for tensor in component.inputs]
    n_named = type(module).forward.__code__.co_argcount - 1  # without self; what is left over goes to *args
    if n_named == len(per_input):
        return tuple(per_input)
    return (*per_input[:n_named], tuple(per_input[n_named:]))


def _named(model: ir.Model, component: Component, weights: Container[str]) -> ir.Model:
    """Give inputs, outputs, dimensions and weights their public names, and drop the weights' placeholders.

    Tensors that a `forward` makes of numbers (LongRoPE's factors) are initializers too, and keep their values.
    """
    graph = model.graph
    model.ir_version = IR_VERSION
    graph.name = component.name
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
        elif name in weights:
            value.const_value = None
            del graph.initializers[name]
            value.name = name.removeprefix("hf.")
            graph.initializers[value.name] = value
    symbols: dict[str, str] = {}
    for value, tensor in zip(graph.inputs, component.inputs, strict=True):
        assert value.shape is not None
        for axis, dim in _symbols(tensor).items():
            symbols[str(value.shape[axis])] = dim
        value.name = tensor.name
    for value, tensor in zip(graph.outputs, component.outputs, strict=True):
        value.name = tensor.name
    _rename_dimensions(graph, symbols)
    if any(node.domain == DOMAIN for node in graph):
        model.opset_imports[DOMAIN] = VERSION
        function = ir.serde.deserialize_function(anchored_attention.function_body())
        model.functions[function.identifier()] = function
    return model


def _rename_dimensions(graph: ir.Graph, symbols: dict[str, str]) -> None:
    values = [*graph.inputs, *(output for node in graph for output in node.outputs)]
    for value in values:
        if value.shape is not None and not all(isinstance(dim, int) for dim in value.shape):
            value.shape = ir.Shape(
                [dim if isinstance(dim, int) else _renamed(str(dim), symbols) for dim in value.shape]
            )


def _renamed(expression: str, symbols: dict[str, str]) -> str:
    return re.sub(r"\w+", lambda match: symbols.get(match.group(), match.group()), expression)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """torch's exporter logs that torchvision is absent and warns of its own deprecations; neither concerns the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
