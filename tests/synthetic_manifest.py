"""Manifests of components that a test makes itself, whole in form, without the export of a bundle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from documents_made import manifest_document

from va_export.bundle.document import (
    ComponentEntry,
    EngineEntry,
    FileEntry,
    ModelEntry,
    TextSizes,
    VisionSizes,
)
from va_export.bundle.manifest import Manifest
from va_export.bundle.tensors import TensorInfo
from va_export.models.component import Component

TEXT = TextSizes(
    hidden_size=128,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    intermediate_size=256,
    vocab_size=263,
    max_position_embeddings=2048,
    whole_from=None,
)
VISION = VisionSizes(hidden_size=64, num_layers=2, num_heads=4, intermediate_size=128, positions_per_frame=65)
DECODER_INPUTS = (
    TensorInfo("inputs_embeds", "float32", ("batch", "sequence", 128)),
    TensorInfo("position_ids", "int64", (1, "batch", "sequence")),
)


def component_entry(name: str, layers: tuple[int, int] | None = None, **changes: Any) -> ComponentEntry:
    """A component whose file is `NAME.onnx`; one whose name begins with `decoder` takes what a decoder takes first."""
    is_decoder = name.startswith("decoder")
    return ComponentEntry(
        **{
            "role": "decoder" if is_decoder else name,
            "onnx": f"{name}.onnx",
            "onnx_native": f"{name}_native.onnx" if is_decoder else None,  # as all of them have
            "inputs": DECODER_INPUTS if is_decoder else (),
            "outputs": (),
            "ranges": {},
            "layers": layers,
            **changes,
        }
    )


def entry_of(component: Component, **changes: Any) -> ComponentEntry:
    """The entry of a component that is described."""
    shard = component.shard
    layers = None if shard is None or shard.is_whole else (shard.first_layer, shard.stop_layer)
    described = {"role": component.role, "inputs": component.inputs, "outputs": component.outputs}
    return component_entry(component.name, layers, **described, **changes)


def engine_entry(file: str) -> EngineEntry:
    """An engine of which nothing but the file is known."""
    return EngineEntry(
        file=file,
        version="1",
        targets=("sm89",),
        bytes=0,
        seconds=0.0,
        peak_memory_bytes=None,
        plugin_nodes=0,
        plugin_records=0,
        layers={},
        profiles=(),
    )


def manifest_of(
    directory: Path,
    components: Mapping[str, ComponentEntry],
    num_layers: int = 4,
    *,
    files: Iterable[str] = (),
    **changes: Any,
) -> Manifest:
    """A bundle of these components in float16, all of their files listed, and `files` beside them."""
    named = [file for entry in components.values() for file in (entry.onnx, entry.onnx_native) if file]
    engines = [engine.file for entry in components.values() for engine in entry.engines.values()]
    model = ModelEntry(
        name="synthetic",
        source="a test",
        revision=None,
        commit=None,
        checkpoint_files={},
        family="internvl2",
        weights="random",
        text=msgspec.structs.replace(TEXT, num_layers=num_layers),
        vision=VISION,
        image_token_id=None,
    )
    document = manifest_document(
        **{
            "model": model,
            "components": dict(components),
            "plugin": None,
            "tokenizer": None,
            "files": {file: FileEntry(bytes=0, sha256="") for file in (*named, *engines, *files)},
            **changes,
        }
    )
    return Manifest(directory, document)
