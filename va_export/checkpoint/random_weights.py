"""A checkpoint of any size that lies nowhere: weights drawn from a seed when they are read.

For structure, memory and latency at full size where no trained weights are at hand. A weight's numbers depend on the
seed, its name and their place in it alone, so they are the same in any order of reading and in any run.

Matrices are normal with standard deviation 0.02, as Hugging Face's models are initialised; biases are 0; every other
vector is 1, which is where norms start and makes layer scales neutral. Values are bfloat16, as published checkpoints
have them. They are quantiles of the normal distribution, chosen by 16 random bits each: NumPy keeps the stream of its
bit generators from version to version, but not that of its normal numbers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from va_export.checkpoint.files import Checkpoint
from va_export.checkpoint.safetensors_header import TensorEntry

if TYPE_CHECKING:
    from va_export.models.family import WeightSource

STANDARD_DEVIATION = 0.02
# Numbers that share a generator: rows are read in parts, and a part costs whole blocks.
_BLOCK = 1 << 18


class RandomCheckpoint(Checkpoint):
    """A `Checkpoint` of random weights; `directory` holds config.json and perhaps a tokenizer."""

    def __init__(
        self, directory: Path, config: dict[str, Any], weight_map: Mapping[str, WeightSource], seed: int
    ) -> None:
        nowhere = directory / "(random)"
        entries = {
            source.checkpoint_name: TensorEntry(nowhere, source.checkpoint_shape, torch.bfloat16, 0)
            for source in weight_map.values()
        }
        super().__init__(directory, config, entries, ())
        self._seed = seed

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of weight `name`."""
        shape = self.shape(name)
        if len(shape) < 2:
            value = 0.0 if name.endswith("bias") else 1.0
            return torch.full((stop - start,), value, dtype=torch.bfloat16)
        width = math.prod(shape[1:])
        values = _normal(hashlib.sha256(f"{self._seed}:{name}".encode()).digest(), start * width, stop * width)
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16).reshape(stop - start, *shape[1:])


def _normal(key: bytes, start: int, stop: int) -> npt.NDArray[np.uint16]:
    """Elements [start, stop) of the endless row of normal numbers that belongs to `key`, as bfloat16's bits."""
    result = np.empty(stop - start, np.uint16)
    table = _quantiles()
    for block in range(start // _BLOCK, -(-stop // _BLOCK)):
        first = block * _BLOCK
        begin, end = max(start, first), min(stop, first + _BLOCK)
        seed = np.random.SeedSequence([int.from_bytes(key, "little"), block])
        raw = np.random.SFC64(seed).random_raw(_BLOCK // 4).view(np.uint16)
        # Every index of 16 bits is in the table; "wrap" spares the check.
        np.take(table, raw[begin - first : end - first], out=result[begin - start : end - start], mode="wrap")
    return result


@cache
def _quantiles() -> npt.NDArray[np.uint16]:
    """The normal distribution's quantiles at the middles of 65536 equal probabilities, as bfloat16's bits."""
    from scipy.special import ndtri

    values = STANDARD_DEVIATION * ndtri((np.arange(1 << 16) + 0.5) / (1 << 16))
    return torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
