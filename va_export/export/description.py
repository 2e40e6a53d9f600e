"""What a bundle says of itself, and what its host needs besides the components."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from msgspec import structs

from va_export.export.weight_losses import loss_entry

if TYPE_CHECKING:
    from va_export.bundle.write import BundleWriter
    from va_export.export.build_engines import EnginePlan
    from va_export.export.components import WrittenComponents
    from va_export.export.recipe import ExportOptions
    from va_export.export.shard_plan import ShardPlan
    from va_export.export.source import Source


def write_settings(options: ExportOptions, source: Source, bundle: BundleWriter) -> None:
    """Write what the host needs besides the components: processing, generation, tokenizer, configuration, plugin."""
    processing = source.family.processing(source.spec, source.checkpoint)
    bundle.path("processing.json").write_text(processing.to_json() + "\n", encoding="utf-8")
    bundle.write_json(
        "generation.json",
        {"stop_token_ids": list(processing.stop_token_ids), "frames": options.recipe.frames, "sampling": "greedy"},
    )
    source.family.write_tokenizer(source.checkpoint, bundle.directory)
    shutil.copyfile(source.checkpoint.directory / "config.json", bundle.path("config.json"))


def describe(
    options: ExportOptions,
    source: Source,
    shards: ShardPlan,
    written: WrittenComponents,
    checkpoint_files: dict[str, dict[str, Any]],
    engine_entries: dict[str, dict[str, Any]],
    engines: EnginePlan,
) -> dict[str, Any]:
    """The manifest without its files.

    Args:
        checkpoint_files: of the weights, name → size and SHA-256.
    """
    from va_export.graph.trace import OPSET
    from va_export.machine import library_versions
    from va_export.ops.declaration import OP_VERSIONS

    recipe, spec = options.recipe, source.spec
    return {
        "model": {
            "name": recipe.name,
            "source": recipe.weights_source,
            "revision": recipe.revision,
            "commit": source.commit,
            "checkpoint_files": checkpoint_files,
            "family": source.family.name,
            "weights": "random" if recipe.is_random else "checkpoint",
            "text": asdict(spec.text),
            "vision": asdict(spec.vision),
            "image_token_id": spec.image_token_id,
        },
        "precision": options.precision,
        "precision_loss": loss_entry(written.losses),
        "attention": options.attention,
        "opset": OPSET,
        "ops": dict(OP_VERSIONS),
        "libraries": library_versions(),
        "components": {
            name: {**entry, **({"engines": engine_entries[name]} if name in engine_entries else {})}
            for name, entry in written.entries.items()
        },
        "decoder_shards": shards.to_mapping(),
        "limits": structs.asdict(recipe.limits),
        "gains": structs.asdict(recipe.gains),
        "score": structs.asdict(recipe.score),
        "plugin": engines.plugin_entry(),
        "tokenizer": "tokenizer.json" if source.checkpoint.has_tokenizer else None,
    }
