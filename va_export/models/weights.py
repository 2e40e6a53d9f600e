"""Checking and loading weights through a family's weight map; knows no family."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn

from va_export.checkpoint.files import Checkpoint
from va_export.errors import VaExportError
from va_export.models.family import WeightSource

_READABLE = (torch.float32, torch.float16, torch.bfloat16)
_NAMES_SHOWN = 6


def check_against_map(
    used: Mapping[str, WeightSource], unused: Mapping[str, WeightSource], checkpoint: Checkpoint
) -> None:
    """Hold a checkpoint's headers against the weights a model needs.

    Args:
        used: the model's weight map.
        unused: sources that the checkpoint may hold beside those (layers that were cut off).

    Raises:
        VaExportError: naming the tensors that are missing, unknown, wrongly shaped or wrongly typed.
    """
    needed = {source.checkpoint_name: source.checkpoint_shape for source in used.values()}
    known = needed | {source.checkpoint_name: source.checkpoint_shape for source in unused.values()}
    present = set(checkpoint.names())
    where = checkpoint.directory

    if missing := sorted(needed.keys() - present):
        raise VaExportError(
            f"{len(missing)} tensors are missing from the checkpoint: {_listed(missing)}",
            where=where,
            fix="the checkpoint is incomplete, or its config.json describes another model",
        )
    if extra := sorted(present - known.keys()):
        raise VaExportError(
            f"{len(extra)} tensors of the checkpoint have no place in the model: {_listed(extra)}",
            where=where,
            fix="config.json describes another model than the weights (layers, biases, decoder?)",
        )
    wrong = [
        f"{name} is {list(checkpoint.shape(name))}, expected {list(known[name])}"
        for name in sorted(present)
        if checkpoint.shape(name) != known[name]
    ]
    if wrong:
        raise VaExportError(
            f"{len(wrong)} tensors have another shape than config.json says: {_listed(wrong, '; ')}",
            where=where,
            fix="make config.json and weights come from the same checkpoint",
        )
    typed = [
        f"{name} is {checkpoint.dtype(name)}" for name in sorted(present) if checkpoint.dtype(name) not in _READABLE
    ]
    if typed:
        raise VaExportError(
            f"{len(typed)} tensors are not float32, float16 or bfloat16: {_listed(typed, '; ')}",
            where=where,
            fix="use the unquantised checkpoint",
        )


def load_parameters(
    model: nn.Module, weight_map: Mapping[str, WeightSource], checkpoint: Checkpoint, dtype: torch.dtype
) -> None:
    """Give every parameter of `model` (which may be on the meta device) its value, as `dtype` on the CPU, in place.

    Raises:
        VaExportError: a tensor cannot be read or is not finite.
        RuntimeError: the map and the model disagree (our own bug).
    """
    parameters = dict(model.named_parameters())
    if parameters.keys() != weight_map.keys():
        raise RuntimeError(f"weight map and model differ in {sorted(parameters.keys() ^ weight_map.keys())[:4]}")
    for name, value in read_parameters(weight_map, weight_map, checkpoint, dtype):
        if value.shape != parameters[name].shape:
            raise RuntimeError(f"{name} is {list(parameters[name].shape)}, its source {list(value.shape)}")
        set_parameter(model, name, nn.Parameter(value, requires_grad=False))


def read_parameters(
    names: Iterable[str], weight_map: Mapping[str, WeightSource], checkpoint: Checkpoint, dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, value as `dtype`) of some parameters, in any order: each tensor of the checkpoint is read once.

    Raises:
        VaExportError: a tensor cannot be read or is not finite.
    """
    by_tensor: dict[str, list[str]] = {}
    for name in names:
        by_tensor.setdefault(weight_map[name].checkpoint_name, []).append(name)
    for checkpoint_name, sharing in by_tensor.items():
        tensor = checkpoint.tensor(checkpoint_name)
        for name in sharing:
            yield name, weight_map[name].view(tensor).to(dtype).contiguous()


def set_parameter(model: nn.Module, name: str, value: nn.Parameter) -> None:
    """Replace the parameter called `name`."""
    module_name, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module_name), leaf, value)


def _listed(names: Iterable[str], separator: str = ", ") -> str:
    names = list(names)
    shown = separator.join(names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown}{separator}and {len(names) - _NAMES_SHOWN} more"
