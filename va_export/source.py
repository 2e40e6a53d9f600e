"""From `--model` to an opened, checked checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from va_export.checkpoint import Checkpoint, HubUnreachable, download, read_json
from va_export.models import family_for, family_named, published_config

if TYPE_CHECKING:
    from va_export.models.family import ModelFamily, ModelSpec
    from va_export.recipe import ExportOptions, Recipe


@dataclass(frozen=True)
class Source:
    """An opened checkpoint and what it is."""

    checkpoint: Checkpoint
    family: ModelFamily
    spec: ModelSpec


def open_source(options: ExportOptions, scratch: Path) -> Source:
    """Open the checkpoint that the recipe names (making or downloading it first) and check all of its tensors'
    headers."""
    recipe = options.recipe
    checkpoint = Checkpoint.open(_checkpoint_directory(recipe, scratch))
    family = family_for(checkpoint.config)
    spec = family.spec_from_checkpoint(checkpoint, options.num_decoder_layers, options.image_token_id)
    family.check_weights(spec, checkpoint)
    return Source(checkpoint, family, spec)


def open_spec(options: ExportOptions, scratch: Path) -> tuple[ModelFamily, ModelSpec]:
    """What an export would be of, for planning. Of a hub id only the configuration is downloaded (a published
    checkpoint's is known where the Hub is out of reach); a local checkpoint is checked as `open_source` does."""
    recipe = options.recipe
    if recipe.random_weights or Path(recipe.checkpoint).expanduser().is_dir():
        source = open_source(options, scratch)
        return source.family, source.spec
    config = _hub_config(recipe)
    family = family_for(config)
    return family, family.spec_from_config(config, options.num_decoder_layers, options.image_token_id)


def _hub_config(recipe: Recipe) -> Mapping[str, Any]:
    try:
        directory = download(recipe.checkpoint, recipe.revision, weights=False)
    except HubUnreachable:
        if (config := published_config(recipe.checkpoint)) is None:
            raise
        return config
    return read_json(directory / "config.json", what="the model's configuration")


def _checkpoint_directory(recipe: Recipe, scratch: Path) -> Path:
    if recipe.random_weights:
        return family_named(recipe.random_weights).write_tiny_checkpoint(scratch / recipe.name, recipe.seed)
    local = Path(recipe.checkpoint).expanduser()
    return local if local.is_dir() else download(recipe.checkpoint, recipe.revision)
