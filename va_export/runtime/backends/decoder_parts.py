"""The decoder of a bundle, which may lie in several components: which ones, in what order, and on which GPUs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from va_export.bundle.decoder_shards import DECODER, DecoderShard
from va_export.bundle.manifest import MANIFEST_NAME
from va_export.errors import VaExportError

if TYPE_CHECKING:
    from va_export.bundle.manifest import Manifest


def decoder_parts(manifest: Manifest) -> tuple[DecoderShard, ...]:
    """The decoder's components in the order in which they run; a decoder in one piece is one part.

    Raises:
        VaExportError: the bundle has no decoder, its shards do not follow each other from the first layer to the
            last, or one of them takes or gives what does not fit the model's sizes.
    """
    components, num_layers = manifest.data.components, manifest.data.model.text.num_layers
    ordered = sorted((*entry.layers, name) for name, entry in components.items() if entry.layers is not None)
    if not ordered:
        # Without one, component_file says which components there are.
        whole = DecoderShard(DECODER, 0, num_layers, num_layers)
        _check_sizes(manifest, whole)
        return (whole,)
    starts, stops = [first for first, _, _ in ordered], [stop for _, stop, _ in ordered]
    if [*starts, num_layers] != [0, *stops] or any(first >= stop for first, stop, _ in ordered):
        raise VaExportError(
            f"the decoder's shards are of layers {[[first, stop] for first, stop, _ in ordered]}, which do not make up"
            f" {num_layers} layers",
            where=manifest.directory,
            fix="export the bundle again",
        )
    parts = tuple(DecoderShard(name, first, stop, num_layers) for first, stop, name in ordered)
    for part in parts:
        _check_sizes(manifest, part)
    return parts


def _check_sizes(manifest: Manifest, part: DecoderShard) -> None:
    """Hold a part's caches and logits, where it describes any, against the sizes of the model."""
    text, entry = manifest.data.model.text, manifest.data.components.get(part.name)
    if entry is None:
        return
    keys = [tensor.shape for tensor in entry.inputs if tensor.name.endswith(".key")]
    logits = [tensor.shape for tensor in entry.outputs if tensor.name == "logits"]
    cache, place = (text.num_kv_heads, text.head_dim), f"model.text, components.{part.name}"
    if keys and len(keys) != len(part.layers):
        what = f"{part.name} has the caches of {len(keys)} layers; the manifest says that it has {len(part.layers)}"
    elif wrong := next((shape for shape in keys if len(shape) != 4 or (shape[1], shape[3]) != cache), None):
        what = f"{part.name} has a cache of {list(wrong)}; the manifest's heads and head_dim are {list(cache)}"
    elif wrong := next((shape for shape in logits if shape[-1:] != (text.vocab_size,)), None):
        what = f"{part.name} gives logits of {list(wrong)}; the manifest's vocabulary has {text.vocab_size}"
    else:
        return
    raise VaExportError(what, where=f"{manifest.directory / MANIFEST_NAME}: {place}", fix="export the bundle again")


def position_axes(manifest: Manifest) -> int:
    """How many position ids a token has.

    Raises:
        VaExportError: the manifest does not say.
    """
    return _fixed_size(manifest, decoder_parts(manifest)[0].name, "position_ids", 0)


def embedding_width(manifest: Manifest) -> int:
    """Values that a visual token has for the embedding: hidden_size, and more where the decoder's first layers add
    some.

    Raises:
        VaExportError: the manifest does not say.
    """
    return _fixed_size(manifest, "embedding", "visual_tokens", 1)


def _fixed_size(manifest: Manifest, component: str, name: str, axis: int) -> int:
    """Length of one axis of a component's input."""
    shapes = [tensor.shape for tensor in manifest.component(component).inputs if tensor.name == name]
    size = shapes[0][axis] if shapes and len(shapes[0]) > axis else None
    if not isinstance(size, int):
        raise VaExportError(
            f"{component} has no input {name} whose axis {axis} has a fixed length",
            where=f"{manifest.directory / MANIFEST_NAME}: components.{component}.inputs",
            fix="export the bundle again",
        )
    return size


def assign_devices(n_parts: int, devices: Sequence[int]) -> tuple[int, ...]:
    """The device of each part: neighbours together, so that hidden states change devices as seldom as can be.

    Args:
        devices: GPU numbers in the order in which they are to be filled. The parts are of about equal size, so every
            device gets as many of them as the others, or one more.

    Raises:
        VaExportError: more devices than parts.
    """
    if len(devices) > n_parts:
        raise VaExportError(
            f"{len(devices)} devices were given, and this bundle's decoder is in {n_parts}"
            f" {'piece' if n_parts == 1 else 'shards'}",
            where="--devices",
            fix=f"give at most {n_parts}, or export with --decoder-shards {len(devices)}",
        )
    return tuple(devices[index * len(devices) // n_parts] for index in range(n_parts))


def parse_devices(text: str) -> tuple[int, ...] | None:
    """`0,1` → (0, 1); empty → None, which leaves the choice to the backend.

    Raises:
        VaExportError: words that are no device numbers, or one twice.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        return None
    if not all(word.isdecimal() for word in words) or len(set(map(int, words))) < len(words):
        raise VaExportError(
            f"{text!r} is no list of different devices",
            where="--devices",
            fix="write GPU numbers with commas, as 0,1",
        )
    return tuple(map(int, words))


class PartClock:
    """Wall milliseconds of the latest pass through the parts, by name; nothing for a decoder in one piece."""

    def __init__(self, parts: Sequence[DecoderShard]) -> None:
        self._counts = len(parts) > 1
        self.milliseconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: DecoderShard) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self._counts:
            self.milliseconds[part.name] = 1e3 * (time.perf_counter() - start)
