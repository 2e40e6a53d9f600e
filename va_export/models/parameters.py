"""Checking and loading weights through a family's weight map; knows no family."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from va_export.checkpoint.files import Checkpoint
from va_export.checkpoint.quantised import named_as_unreadable
from va_export.errors import VaExportError
from va_export.models.family import ModelFamily, ModelSpec, WeightSource

_READABLE = (torch.float32, torch.float16, torch.bfloat16)
_NAMES_SHOWN = 6
_COMPUTED = re.compile(r"(^|\.)(original_)?(inv_freq|cos_cached|sin_cached|position_ids)$")
_MASK = re.compile(r"(^|\.)(attn|attention|self_attn)\.(bias|masked_bias)$")  # (1, 1, n, n), and its scalar


def check_checkpoint(family: ModelFamily, spec: ModelSpec, checkpoint: Checkpoint) -> None:
    """Compare names, shapes and types of all weights with what `spec` expects; layers that were cut off may be there.

    Raises:
        VaExportError: missing, unknown, wrongly shaped or wrongly typed tensors, by name.
    """
    used = family.weight_map(spec)
    uncut = replace(spec, text=replace(spec.text, num_layers=spec.checkpoint_layers))
    check_against_map(used, used if uncut == spec else family.weight_map(uncut), checkpoint, spec.unread)


def load_model(
    family: ModelFamily,
    spec: ModelSpec,
    checkpoint: Checkpoint,
    dtype: torch.dtype = torch.float32,
    attention: str = "anchored",
    weight_map: Mapping[str, WeightSource] | None = None,
) -> nn.Module:
    """A family's model with the checkpoint's weights as `dtype`, on the CPU. Peak memory: the weights once, and one
    tensor of the checkpoint.

    Args:
        weight_map: the family's, where it is known already.

    Raises:
        VaExportError: a tensor is not there, cannot be read or is not finite.
    """
    with torch.device("meta"):
        model = family.build_model(spec, attention)
    load_parameters(model, weight_map or family.weight_map(spec), checkpoint, dtype)
    return model


def check_against_map(
    used: Mapping[str, WeightSource],
    unused: Mapping[str, WeightSource],
    checkpoint: Checkpoint,
    unread: Collection[str] = (),
) -> None:
    """Hold a checkpoint's headers against the weights a model needs.

    Args:
        used: the model's weight map.
        unused: sources that the checkpoint may hold beside those (layers that were cut off).
        unread: tensors that it may hold, of any shape and type.

    Buffers that older checkpoints carry and no model reads are left out, and told.

    Raises:
        VaExportError: naming the tensors that are missing, unknown, wrongly shaped or wrongly typed, or what they are
            where they are quantised or an adapter's.
    """
    needed = {source.checkpoint_name: source.checkpoint_shape for source in used.values()}
    known = needed | {source.checkpoint_name: source.checkpoint_shape for source in unused.values()}
    types = {name: checkpoint.dtype(name) for name in checkpoint.names()}
    without_effect = [name for name in types if name not in known and _has_no_effect(name, checkpoint)]
    if without_effect:
        checkpoint.note(
            f"{len(without_effect)} tensors of the checkpoint are buffers without effect, left out: "
            f"{_listed(without_effect)}"
        )
    present = sorted(types.keys() - set(without_effect) - set(unread))
    missing = sorted(needed.keys() - types.keys())
    extra = [name for name in present if name not in known]
    typed = [f"{name} is {types[name]}" for name in present if types[name] not in _READABLE]
    named = named_as_unreadable({name: types[name] for name in present}) if missing or extra or typed else None
    if named is not None:
        raise VaExportError(named[0], where=checkpoint.directory, fix=named[1])
    wrong = [
        f"{name} is {list(checkpoint.shape(name))}, expected {list(known[name])}"
        for name in present
        if name in known and checkpoint.shape(name) != known[name]
    ]
    faults = (
        (missing, "are missing from the checkpoint", "the checkpoint is incomplete, or its config.json is another's"),
        (extra, "of the checkpoint have no place in the model", "config.json describes another model than the weights"),
        (wrong, "have another shape than config.json says", "take config.json and weights from the same checkpoint"),
        (typed, "are not float32, float16 or bfloat16", "use the unquantised checkpoint; save other floats as float32"),
    )
    for found, what, fix in faults:
        if found:
            raise VaExportError(f"{len(found)} tensors {what}: {_listed(found)}", where=checkpoint.directory, fix=fix)


def _has_no_effect(name: str, checkpoint: Checkpoint) -> bool:
    """Whether a tensor is a buffer that today's models compute themselves: frequencies, positions, a causal mask."""
    if _COMPUTED.search(name):
        return True
    return _MASK.search(name) is not None and len(checkpoint.shape(name)) in (0, 4)


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


def _listed(names: Sequence[str]) -> str:
    shown = "; ".join(names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown}; and {len(names) - _NAMES_SHOWN} more"
