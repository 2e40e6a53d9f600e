"""What an engine takes and gives: names, types, and the shapes of its optimisation profiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from va_export.errors import VaExportError
from va_export.tensorrt.api import TensorRT
from va_export.tensorrt.types import Engine

# Names of a decoder's caches before and after a step; the two share memory.
PAST_PREFIX, PRESENT_PREFIX = "past_key_values.", "present."

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of an engine; a dimension of −1 is given at run time."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Tensor(Protocol):
    """An array on the host or on the GPU."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...


class EngineShapes:
    """The specification of a deserialized engine, and the checks of a call against it."""

    def __init__(self, api: TensorRT, engine: Engine) -> None:
        mode = api.module.TensorIOMode
        self.inputs: dict[str, TensorSpec] = {}
        self.outputs: dict[str, TensorSpec] = {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            spec = TensorSpec(
                name, tuple(engine.get_tensor_shape(name)), _numpy_dtype(engine.get_tensor_dtype(name).name)
            )
            (self.inputs if engine.get_tensor_mode(name) == mode.INPUT else self.outputs)[name] = spec
        self._profiles = [
            {name: _bounds(engine, spec, profile) for name, spec in self.inputs.items()}
            for profile in range(engine.num_optimization_profiles)
        ]

    @property
    def cache_inputs(self) -> tuple[str, ...]:
        """Inputs that hold a KV cache: their outputs share their memory."""
        return tuple(name for name in self.inputs if name.startswith(PAST_PREFIX))

    def choose_profile(self, shapes: Mapping[str, Sequence[int]]) -> int:
        """The profile with the least room to spare among those that take these shapes.

        Raises:
            VaExportError: no profile takes them; names the first input that does not fit and its range.
        """
        fitting = [
            (sum(int(np.prod(profile[name][2])) for name in self.inputs), index)
            for index, profile in enumerate(self._profiles)
            if all(_fits(shapes[name], profile[name]) for name in self.inputs)
        ]
        if fitting:
            return min(fitting)[1]
        ranges = {
            name: " or ".join(f"{profile[name][0]} to {profile[name][2]}" for profile in self._profiles)
            for name in self.inputs
            if not any(_fits(shapes[name], profile[name]) for profile in self._profiles)
        }
        where, text = next(iter(ranges.items()), ("inputs", "shapes that fit one profile together"))
        given = tuple(shapes[where]) if where in shapes else {n: tuple(s) for n, s in shapes.items()}
        raise VaExportError(
            f"the engine takes {text}, not {given}",
            where=where,
            fix="send less at a time, or build the engine for larger limits",
        )

    def check_inputs(self, inputs: Mapping[str, Tensor]) -> None:
        """Names, types and ranks.

        Raises:
            VaExportError: an input is missing, unknown, or of another type or rank.
        """
        if missing := sorted(set(self.inputs) - set(inputs)):
            raise VaExportError(
                f"the engine's inputs {', '.join(missing)} are not given", where="inputs", fix="give every input"
            )
        if unknown := sorted(set(inputs) - set(self.inputs)):
            raise VaExportError(
                f"the engine has no input {', '.join(unknown)}", where="inputs", fix=f"it has {', '.join(self.inputs)}"
            )
        for name, spec in self.inputs.items():
            value = inputs[name]
            if value.dtype != spec.dtype or len(value.shape) != len(spec.shape):
                raise VaExportError(
                    f"the engine takes {spec.dtype} of rank {len(spec.shape)}, "
                    f"not {value.dtype} of shape {tuple(value.shape)}",
                    where=name,
                    fix=f"give {name} as {spec.dtype} of rank {len(spec.shape)}",
                )


def _bounds(engine: Engine, spec: TensorSpec, profile: int) -> tuple[tuple[int, ...], ...]:
    """Smallest, tuned and largest shape; of a static input its only shape."""
    if -1 not in spec.shape:
        return (spec.shape,) * 3
    return tuple(tuple(shape) for shape in engine.get_tensor_profile_shape(spec.name, profile))


def _fits(shape: Sequence[int], bounds: Sequence[Sequence[int]]) -> bool:
    low, _, high = bounds
    return len(shape) == len(low) and all(a <= d <= b for a, d, b in zip(low, shape, high, strict=True))


def _numpy_dtype(name: str) -> np.dtype[Any]:
    if name == "BF16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    if name not in _DTYPES:
        raise VaExportError(f"tensors of type {name} cannot be handed to an engine from NumPy", where=name)
    return np.dtype(_DTYPES[name])
