"""A model whose weights are in memory only while a module of it computes; knows no family.

The Hugging Face model is built on the meta device, and its own code runs unchanged: a module's parameters are read from
the checkpoint before its forward and given up after it. A model of any size runs in the memory of its largest module,
at the price of reading the checkpoint once a pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from va_export.checkpoint.files import Checkpoint
from va_export.models.family import WeightSource
from va_export.models.parameters import read_parameters, set_parameter


class StreamedModel:
    """Reads the weights of `model`, which is on the meta device, when they are needed, as float32 on the CPU.

    Args:
        model: built under `torch.device("meta")`; without buffers, as a family's `build_model` makes it.
        weight_map: its parameters' sources.
        checkpoint: where they lie.
    """

    def __init__(self, model: nn.Module, weight_map: Mapping[str, WeightSource], checkpoint: Checkpoint) -> None:
        self.model: Any = model
        self._weight_map = weight_map
        self._checkpoint = checkpoint
        self._empty = dict(model.named_parameters())
        self._names = {id(module): name for name, module in model.named_modules()}
        if self._empty.keys() != weight_map.keys():
            raise RuntimeError(f"weight map and model differ in {sorted(self._empty.keys() ^ weight_map.keys())[:4]}")

    @contextmanager
    def resident(self, *modules: nn.Module) -> Iterator[None]:
        """Hold all parameters of some modules while the block runs."""
        names = [name for module in modules for name in self._parameters_of(module, recurse=True)]
        self._load(names)
        try:
            yield
        finally:
            self._drop(names)

    @contextmanager
    def streamed(self, module: nn.Module) -> Iterator[None]:
        """While the block runs, every submodule of `module` holds its own parameters just during its forward; those of
        `module` itself, whose forward may not be what is called, are there all the while."""
        own = self._parameters_of(module, recurse=False)
        self._load(own)
        handles = []
        for part in module.modules():
            if part is not module and (names := self._parameters_of(part, recurse=False)):
                handles.append(part.register_forward_pre_hook(lambda *_, names=names: self._load(names)))
                handles.append(part.register_forward_hook(lambda *_, names=names: self._drop(names), always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._drop(own)

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """`get_input_embeddings()(input_ids)`, reading the rows that occur and no others."""
        module: Any = self.model.get_input_embeddings()
        (name,) = self._parameters_of(module, recurse=False)
        source = self._weight_map[name]
        rows, places = torch.unique(input_ids, return_inverse=True)
        values = source.view(self._checkpoint.tensor(source.checkpoint_name))[rows].to(torch.float32)
        set_parameter(self.model, name, nn.Parameter(values, requires_grad=False))
        try:
            embeddings: torch.Tensor = module(places)
        finally:
            self._drop([name])
        return embeddings

    def _parameters_of(self, module: nn.Module, *, recurse: bool) -> list[str]:
        prefix = self._names[id(module)]
        return [f"{prefix}.{name}" for name, _ in module.named_parameters(recurse=recurse)]

    def _load(self, names: list[str]) -> None:
        for name, value in read_parameters(names, self._weight_map, self._checkpoint, torch.float32):
            set_parameter(self.model, name, nn.Parameter(value, requires_grad=False))

    def _drop(self, names: list[str]) -> None:
        for name in names:
            set_parameter(self.model, name, self._empty[name])
        self._checkpoint.release()
