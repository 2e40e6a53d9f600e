"""From `--model` to an opened, checked checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from va_export.checkpoint.files import TOKENIZER_FILES, Checkpoint
from va_export.checkpoint.hub import HubUnreachable, download
from va_export.checkpoint.json_files import read_json
from va_export.checkpoint.random_weights import RandomCheckpoint
from va_export.checkpoint.weight_files import check_entries
from va_export.errors import VaExportError
from va_export.models import family_for, family_named, published_config
from va_export.models.family import Choices
from va_export.models.parameters import check_checkpoint
from va_export.runtime.values import expanded

if TYPE_CHECKING:
    from va_export.export.recipe import ExportOptions, Recipe
    from va_export.models.family import ModelFamily, ModelSpec, WeightSource
    from va_export.runtime.processing import Processing

_COMMIT = re.compile(r"[0-9a-f]{40}")


def _unheard(_: str) -> None:
    """Where nobody listens."""


@dataclass(frozen=True)
class Model:
    """What an export is of, before any weight is read.

    Attributes:
        spec: as far as layers are exported.
    """

    family: ModelFamily
    spec: ModelSpec

    @cached_property
    def weight_map(self) -> Mapping[str, WeightSource]:
        """For every parameter, where in the checkpoint it lies."""
        return self.family.weight_map(self.spec)

    def visual_tokens(self, n_frames: int) -> int:
        """Visual tokens that so many frames become, at the most."""
        return self.family.visual_tokens(self.spec, n_frames)


@dataclass(frozen=True)
class Source(Model):
    """A model and its opened checkpoint.

    Attributes:
        commit: the Hub's name of exactly these files; None where they come from a local directory.
    """

    checkpoint: Checkpoint
    commit: str | None = None

    @cached_property
    def processing(self) -> Processing:
        """How frames and a question become the model's inputs."""
        try:
            return self.family.processing(self.spec, self.checkpoint)
        except ValueError as error:  # a form's own check of what a family put together
            raise VaExportError(
                f"the checkpoint's files describe no prompts or pictures that a model can take: {error}",
                where=self.checkpoint.directory,
                fix="take config.json and the settings beside it from one checkpoint",
            ) from error


def open_source(options: ExportOptions, scratch: Path, note: Callable[[str], None] = _unheard) -> Source:
    """Open the checkpoint that the recipe names (making or downloading it first) and check all of its tensors'
    headers.

    Args:
        note: is told what of the checkpoint is not followed, or contradicts itself, and does no harm.
    """
    source = _opened(options, scratch)
    if not source.checkpoint.has_tokenizer:
        note(f"the checkpoint has no tokenizer (none of {', '.join(TOKENIZER_FILES)}): the bundle takes ids, no text.")
    for text in source.checkpoint.notes:
        note(text)
    return source


def _choices(options: ExportOptions) -> Choices:
    return Choices(options.num_decoder_layers, options.image_token_id, options.recipe.limits.max_pixels)


def _opened(options: ExportOptions, scratch: Path) -> Source:
    recipe = options.recipe
    if recipe.weights == "random":
        return _random_source(options, scratch)
    directory = _checkpoint_directory(recipe, scratch)
    checkpoint = Checkpoint.open(directory)
    checkpoint.config = _as_asked(recipe, checkpoint.config)
    family = family_for(checkpoint.config)
    spec = family.spec_from_checkpoint(checkpoint, _choices(options))
    check_checkpoint(family, spec, checkpoint)
    source = Source(family, spec, checkpoint, _commit(directory))
    _ = source.processing  # what is wrong with prompts should not be found out after everything else
    return source


def open_model(options: ExportOptions, scratch: Path, note: Callable[[str], None] = _unheard) -> Model:
    """What an export would be of, for planning. Of a hub id only the configuration is downloaded (a published
    checkpoint's is known where the Hub is out of reach); a local checkpoint is checked as `open_source` does."""
    recipe = options.recipe
    if recipe.is_random or expanded("--model", recipe.checkpoint).is_dir():
        return open_source(options, scratch, note)
    config = _as_asked(recipe, _hub_config(recipe))
    family = family_for(config)
    return Model(family, family.spec_from_config(config, _choices(options)))


def _hub_config(recipe: Recipe) -> Mapping[str, Any]:
    try:
        directory = download(recipe.checkpoint, recipe.revision, weights=False)
    except HubUnreachable:
        if (config := published_config(recipe.checkpoint)) is None:
            raise
        return config
    return read_json(directory / "config.json", what="the model's configuration")


def _as_asked(recipe: Recipe, config: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's configuration with what the recipe sets otherwise."""
    if recipe.config:
        allowed = family_for(config).open_settings(config)
        for key in recipe.config:
            if key not in allowed:
                raise VaExportError(
                    f"config.{key} of this checkpoint is no matter of choice: its weights were made for what its"
                    " config.json says",
                    where=f"recipe {recipe.name}: config.{key}",
                    fix=f"set only {', '.join(allowed)} there" if allowed else "leave [config] out",
                )
    return {**config, **recipe.config}


def _checkpoint_directory(recipe: Recipe, scratch: Path) -> Path:
    if recipe.random_weights:
        return family_named(recipe.random_weights).write_tiny_checkpoint(scratch / recipe.name, recipe.seed)
    local = expanded("--model", recipe.checkpoint)
    return local if local.is_dir() else download(recipe.checkpoint, recipe.revision)


def _random_source(options: ExportOptions, scratch: Path) -> Source:
    """The sizes of a checkpoint and its tokenizer, if there is one, with random weights."""
    recipe = options.recipe
    local = expanded("--model", recipe.checkpoint)
    directory = local if local.is_dir() else _sizes_of(recipe, scratch)
    check_entries(directory)
    config = _as_asked(recipe, read_json(directory / "config.json", what="the model's configuration"))
    family = family_for(config)
    without_weights = Checkpoint(directory, config, {}, ())
    spec = family.spec_from_checkpoint(without_weights, _choices(options))
    checkpoint = RandomCheckpoint(directory, config, family.weight_map(spec), recipe.seed)
    checkpoint.notes = without_weights.notes
    source = Source(family, spec, checkpoint, _commit(directory))
    _ = source.processing
    return source


def _sizes_of(recipe: Recipe, scratch: Path) -> Path:
    """A directory with the configuration of a hub id, and its tokenizer where the Hub can be reached."""
    try:
        return download(recipe.checkpoint, recipe.revision, weights=False)
    except HubUnreachable:
        config = _hub_config(recipe)
    directory = scratch / "published"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(dict(config), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return directory


def _commit(directory: Path) -> str | None:
    """The commit that a folder of the Hub's local cache is a copy of: its name."""
    name = directory.name
    return name if directory.parent.name == "snapshots" and _COMMIT.fullmatch(name) else None
