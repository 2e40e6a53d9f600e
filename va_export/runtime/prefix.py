"""Leading slots of a KV cache that further prompts share: those up to a video's last visual token.

What such a slot holds follows from the tokens up to it, their positions, their visual tokens and the gains on keys and
values, for attention is causal; all of these are in a prefix's key. So a prefix is found only by a prompt that would
compute the same, to the rounding of products of other shapes.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from va_export.runtime.array_cache import ArrayCache
from va_export.runtime.backends.backend import Array, Float32, Slots
from va_export.runtime.processing import Prepared

_ON_DISK = 4  # times what is kept in memory
_LEAST_REST = 2  # tokens of a prompt that are prefilled: one alone would be taken for a step, which is plain


@dataclass(frozen=True)
class Prefix:
    """The first `length` slots of a row.

    Attributes:
        parts: one after another.
    """

    parts: tuple[Slots, ...]
    length: int

    def then(self, slots: Slots, length: int) -> Prefix:
        """With further slots behind it."""
        return Prefix((*self.parts, slots), self.length + length)

    def cut(self, length: int) -> Prefix:
        """Its first `length` slots at the most."""
        if self.length <= length:
            return self
        kept, start = Prefix((), 0), 0
        for slots in self.parts:
            held = next(iter(slots.values()))[0].shape[1]
            count = min(held, length - start)
            if count > 0:
                kept = kept.then({part: [array[:, :count] for array in all_] for part, all_ in slots.items()}, count)
            start += held
        return kept


def shared_length(prepared: Prepared) -> int:
    """Tokens of a prompt that another question about the same videos and images begins with."""
    places = np.flatnonzero(prepared.is_visual[0])
    return min(int(places[-1]) + 1, prepared.length - _LEAST_REST) if len(places) else 0


def prefix_key(bundle: str, seen: str, prepared: Prepared, gains: tuple[Float32, Float32], length: int) -> str:
    """SHA-256 of all that the first `length` slots follow from.

    Args:
        bundle: names the decoder and what runs it.
        seen: names the visual tokens.
    """
    digest = hashlib.sha256(f"{bundle}\0{seen}\0{length}\0".encode())
    head = slice(length)
    for array in (prepared.input_ids, prepared.is_visual, prepared.position_ids):
        digest.update(np.ascontiguousarray(array[..., head]).data)
    for gain in gains:
        digest.update(np.ascontiguousarray(gain[head], np.float32).data)
    return digest.hexdigest()


class PrefixStore:
    """Slots by key, in memory and perhaps on disk; the least recently used go first.

    Args:
        max_bytes: in memory.
        directory: what is dropped from memory, or asked for by another process, is found there, up to four times as
            much.
    """

    def __init__(self, max_bytes: int, directory: Path | None = None) -> None:
        self._max_bytes = max_bytes
        self._files = None if directory is None else ArrayCache(directory, "slots", max_bytes=_ON_DISK * max_bytes)
        self._kept: OrderedDict[str, Slots] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def keeps(self) -> bool:
        """Whether anything that is stored can be found again."""
        return self._max_bytes > 0

    @property
    def size_bytes(self) -> int:
        """Memory that is taken."""
        with self._lock:
            return sum(map(_size, self._kept.values()))

    def load(self, key: str, empty: Slots, length: int) -> Slots | None:
        """Slots under a key; None if they are not there, or not `length` ones of the form of `empty`, which is none."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        if self._files is None:
            return None
        expected = {
            _name(part, index): ((one.shape[0], length, one.shape[2]), one.dtype)
            for part, all_ in empty.items()
            for index, one in enumerate(all_)
        }
        size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in expected.values())
        found = self._files.load(key, most_bytes=size)
        if found is None or {name: (one.shape, one.dtype) for name, one in found.items()} != expected:
            return None
        slots = {part: [found[_name(part, index)] for index in range(len(all_))] for part, all_ in empty.items()}
        self._keep(key, slots)
        return slots

    def store(self, key: str, slots: Slots) -> None:
        """Keep slots; nobody may write into them any more."""
        self._keep(key, slots)
        if self._files is not None:
            self._files.store(key, {_name(part, i): one for part, all_ in slots.items() for i, one in enumerate(all_)})

    def _keep(self, key: str, slots: Slots) -> None:
        with self._lock:
            self._kept[key] = slots
            self._kept.move_to_end(key)
            total = sum(map(_size, self._kept.values()))
            while total > self._max_bytes and self._kept:
                _, dropped = self._kept.popitem(last=False)
                total -= _size(dropped)


def _name(part: str, index: int) -> str:
    return f"{part}_{index}"


def _size(slots: Slots) -> int:
    return sum(array.nbytes for arrays in slots.values() for array in arrays)


def digest_of(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """SHA-256 of arrays by name: values, types and shapes."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        contiguous: Array = np.ascontiguousarray(array)
        digest.update(f"{name}\0{contiguous.dtype.str}\0{contiguous.shape}\0".encode())
        digest.update(contiguous.data if contiguous.size else b"")
    return digest.hexdigest()
