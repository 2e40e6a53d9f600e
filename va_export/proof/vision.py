"""The vision component of a Hugging Face model, as Hugging Face computes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from va_export.export.source import Source


def run_vision(source: Source, hf: Any, vision_inputs: Mapping[str, npt.NDArray[Any]]) -> torch.Tensor:
    """Visual tokens (N, D) float32 of one prompt.

    Args:
        hf: the family's model, with weights.
    """
    component = next(part for part in source.family.components(source.spec, "fp32", ()) if part.role == "vision")
    tensors = [torch.from_numpy(np.ascontiguousarray(vision_inputs[tensor.name])) for tensor in component.inputs]
    if component.reference is not None:
        return component.reference(hf, tensors)
    assert component.build is not None
    tokens: torch.Tensor = component.build(hf)(*tensors)
    return tokens
