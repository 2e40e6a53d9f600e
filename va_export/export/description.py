"""What a bundle says of itself, and what its host needs besides the components."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from va_export._version import __version__
from va_export.bundle.document import (
    Attention,
    FileEntry,
    ManifestDocument,
    ModelEntry,
    Precision,
    TextSizes,
    ToolEntry,
    VisionSizes,
)
from va_export.bundle.manifest import MANIFEST_VERSION
from va_export.documents import encode
from va_export.export.weight_losses import loss_entry
from va_export.machine import library_versions
from va_export.runtime.processing import PROCESSING_NAME

if TYPE_CHECKING:
    from va_export.bundle.write import BundleWriter
    from va_export.export.build_engines import EnginePlan
    from va_export.export.components import WrittenComponents
    from va_export.export.recipe import ExportOptions
    from va_export.export.shard_plan import ShardPlan
    from va_export.export.source import Source


def write_settings(options: ExportOptions, source: Source, bundle: BundleWriter) -> None:
    """Write what the host needs besides the components: processing, tokenizer, configuration."""
    processing = source.processing.with_frames(options.recipe.frames)
    bundle.path(PROCESSING_NAME).write_bytes(encode(processing))
    source.family.write_tokenizer(source.checkpoint, bundle.directory)
    if source.spec.found or options.recipe.config:
        config = {**source.checkpoint.config, **source.spec.found}
        bundle.path("config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    else:
        shutil.copyfile(source.checkpoint.directory / "config.json", bundle.path("config.json"))


def describe_bundle(
    options: ExportOptions,
    source: Source,
    shards: ShardPlan,
    written: WrittenComponents,
    checkpoint_files: dict[str, FileEntry],
    engines: EnginePlan,
    video: dict[str, Any] | None,
) -> ManifestDocument:
    """The manifest without its files.

    Args:
        checkpoint_files: of the weights, name → size and SHA-256.
        video: the clip that proves the bundle.
    """
    from va_export.graph.trace import OPSET
    from va_export.ops.declaration import OP_VERSIONS

    recipe, spec = options.recipe, source.spec
    return ManifestDocument(
        manifest_version=MANIFEST_VERSION,
        tool=ToolEntry(name="va-export", version=__version__),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=ModelEntry(
            name=recipe.name,
            source=recipe.weights_source,
            revision=recipe.revision,
            commit=source.commit,
            checkpoint_files=checkpoint_files,
            family=source.family.name,
            weights="random" if recipe.is_random else "checkpoint",
            text=_of(TextSizes, spec.text),
            vision=_of(VisionSizes, spec.vision),
            image_token_id=spec.image_token_id,
        ),
        precision=cast(Precision, options.precision),  # both are checked where the options are made
        precision_loss=loss_entry(written.losses),
        attention=cast(Attention, options.attention),
        opset=OPSET,
        ops=dict(OP_VERSIONS),
        libraries=library_versions(),
        components=written.entries,
        decoder_shards=shards.to_mapping(),
        limits=recipe.limits,
        gains=recipe.gains,
        score=recipe.score,
        plugin=engines.plugin_entry(),
        tokenizer="tokenizer.json" if source.checkpoint.has_tokenizer else None,
        files={},
        video=video,
    )


def _of(form: Any, shape: Any) -> Any:
    """The fields of a shape that a form has."""
    return form(**{name: getattr(shape, name) for name in form.__struct_fields__})
