"""A component: one part of the model that becomes one ONNX file.

Three have weights and are traced: `vision` (frames → visual tokens), `embedding` (ids and visual tokens → input
embeddings) and `decoder` (embeddings and a static KV cache → logits). The fourth, the score between `vision` and
`decoder`, is one custom op, and written as that (`score.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Every symbolic dimension that occurs in a component's inputs; engine profiles are stated in the same names.
DIMENSIONS = ("frames", "visual_count", "batch", "sequence", "capacity")


@dataclass(frozen=True)
class Component:
    """A traceable module with named inputs and outputs.

    Attributes:
        name: the ONNX file's stem.
        module: takes the inputs positionally, in the order of `inputs`; returns a flat tuple in the order of `outputs`.
            Its Hugging Face model is held as attribute `hf`, so that parameter names are `hf.` plus their own.
        inputs: example (fake) tensors by name.
        dynamic: per input, axis → name of the symbolic dimension.
        outputs: names of the outputs.
    """

    name: str
    module: torch.nn.Module
    inputs: Mapping[str, torch.Tensor]
    dynamic: Mapping[str, Mapping[int, str]]
    outputs: tuple[str, ...]
