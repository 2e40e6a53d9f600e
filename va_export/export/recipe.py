"""What to export: a recipe by name, a checkpoint directory, or a hub id; and all options of one run."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from msgspec import field
from msgspec.structs import asdict, replace

from va_export.bundle.document import Attention, Precision
from va_export.documents import Form, convert, parse, read_bytes
from va_export.errors import VaExportError
from va_export.models.component import ROLES, SCORE
from va_export.runtime.values import absolute_path, expanded, text
from va_export.runtime.video import check_sampling
from va_export.settings import GainSettings, Limits, ScoreSettings, check_tolerances

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
ATTENTIONS: tuple[Attention, ...] = get_args(Attention)
WEIGHTS = ("checkpoint", "random")
FLAVORS = ("auto", "tensorrt", "tensorrt-rtx")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# The paper's gains for InternVL2-8B; a checkpoint without a recipe of its own starts from them.
_DEFAULT_GAINS = GainSettings(alpha_k=9.5, alpha_v=2.5, alpha_q=4.0)


class RecipeFile(Form, frozen=True):
    """What a recipe's file says.

    Attributes:
        checkpoint: a local directory or a hub id; empty when the weights are random.
        random_weights: the family whose tiny random checkpoint is made; empty for a real checkpoint.
        frames: frames of a question, unless asked otherwise.
        config: keys of the checkpoint's config.json that are to be taken otherwise than it says.
    """

    description: str = ""
    checkpoint: str = ""
    revision: str | None = None
    random_weights: str = ""
    seed: int = 0
    frames: int = 8
    gains: GainSettings = _DEFAULT_GAINS
    score: ScoreSettings = ScoreSettings()
    limits: Limits = Limits()
    config: dict[str, str] = field(default_factory=dict)


class Recipe(RecipeFile, frozen=True, kw_only=True):
    """One model and how it is exported.

    Attributes:
        name: of the recipe, or of the checkpoint.
        weights: `random` takes only the sizes from `checkpoint`, and draws the weights from `seed`.
    """

    name: str
    weights: str = "checkpoint"

    def __post_init__(self) -> None:
        for name in ("seed", "frames"):
            if getattr(self, name) < 0:
                raise VaExportError(
                    f"{name} must be a whole number of at least 0, not {getattr(self, name)}",
                    where=f"recipe {self.name}",
                    fix=f"set another {name}",
                )

    @property
    def is_random(self) -> bool:
        """Whether the weights are random numbers, so that answers mean nothing."""
        return bool(self.random_weights) or self.weights == "random"

    @property
    def weights_source(self) -> str:
        """Where the weights come from, for people."""
        if self.random_weights:
            return f"random weights, seed {self.seed}"
        return (
            f"random weights, seed {self.seed}, in the sizes of {self.checkpoint}"
            if self.is_random
            else self.checkpoint
        )


@dataclass(frozen=True)
class ExportOptions:
    """All options of one export, checked against each other here and nowhere else.

    Attributes:
        output: the bundle's directory.
        score_component: whether to export the score's graph too; None: with a whole model.
        targets: GPU architectures, such as `sm86`; empty: the default of the TensorRT that is used.
        components: which of `ROLES` to export.
        decoder_shards: how many ranges of layers the decoder is cut into; None: as the free memory wants.
        video: the clip whose frames prove the bundle; None: a clip that a package ships.
        sampling: which of its frames, by name (`runtime.video.SAMPLERS`, or fps=…); None: the model's own rule.
        allow_truncated: prove with what is there of a clip that is cut short.
        question: asked about the clip, where there is a tokenizer.
        new_tokens: greedy steps compared in the parity report.
        atol, rtol: override the parity tolerances.
        image_token_id: the placeholder's id, for a checkpoint that does not tell it.
        latency_iterations: timed repeats; 0 leaves latency out.
        parity: False leaves reference, parity and latency out.
        engine_cache: where built engines are kept and looked for; None: nowhere.
        clip_overflow: write weights beyond the precision's range as its largest number, instead of refusing them.
        resume: go on from what an earlier run of the same export left; False removes that.
    """

    recipe: Recipe
    output: Path
    precision: str = "fp16"
    attention: str = "plugin"
    flavor: str = "auto"
    targets: tuple[str, ...] = ()
    onnx_only: bool = False
    components: tuple[str, ...] = ROLES
    score_component: bool | None = None
    num_decoder_layers: int | None = None
    decoder_shards: int | None = None
    overwrite: bool = False
    video: Path | None = None
    sampling: str | None = None
    allow_truncated: bool = False
    question: str = "What moves in this video, and where?"
    new_tokens: int = 8
    atol: float | None = None
    rtol: float | None = None
    image_token_id: int | None = None
    latency_iterations: int = 10
    parity: bool = True
    engine_cache: Path | None = None
    clip_overflow: bool = False
    resume: bool = True

    def __post_init__(self) -> None:
        _choice("--precision", self.precision, PRECISIONS)
        if self.sampling is not None:
            check_sampling(self.sampling, "--sampling")
        _choice("--weights", self.recipe.weights, WEIGHTS)
        _choice("--attention", self.attention, ATTENTIONS)
        _choice("--tensorrt", self.flavor, FLAVORS)
        for component in self.components:
            if component not in ROLES:
                raise VaExportError(
                    f"--components cannot be {component!r}",
                    where="--components",
                    fix=f"use one of: {', '.join((*ROLES, SCORE))}",
                )
        if not self.components and not self.score_component:
            names = ", ".join((*ROLES, SCORE))
            raise VaExportError("no component is left to export", where="--components", fix=f"name some of {names}")
        recipe = self.recipe
        if recipe.frames > recipe.limits.max_frames:
            raise VaExportError(
                f"{recipe.frames} frames are more than max_frames ({recipe.limits.max_frames})",
                where="--frames",
                fix="raise --max-frames",
            )
        for name, value, least in (
            ("--new-tokens", self.new_tokens, 1),
            ("--frames", recipe.frames, 1),
            ("--latency-iterations", self.latency_iterations, 0),
        ):
            if value < least:
                raise VaExportError(f"{name} must be at least {least}, not {value}", where=name, fix=f"raise {name}")
        if self.onnx_only and (self.targets or self.flavor != "auto"):
            raise VaExportError(
                "--onnx-only builds no engines, and engines were asked for with --target or --tensorrt",
                where="--onnx-only",
                fix="leave one of them out",
            )
        if self.num_decoder_layers is not None and self.num_decoder_layers < 1:
            raise VaExportError(
                f"at least one decoder layer is needed, not {self.num_decoder_layers}",
                where="--num-decoder-layers",
                fix="raise it, or leave it out for all layers",
            )
        if self.decoder_shards is not None and (self.decoder_shards < 1 or "decoder" not in self.components):
            raise VaExportError(
                f"{self.decoder_shards} shards cannot be made of "
                + ("a decoder" if "decoder" in self.components else "a decoder that --components leaves out"),
                where="--decoder-shards",
                fix="give a number of at least 1, or leave it out",
            )
        check_tolerances(self.atol, self.rtol)
        text("--question", self.question)
        absolute_path("--output", self.output)
        if self.output.name in ("", ".."):  # `-o .`: work in progress and failed bundles lie beside it, by its name
            raise VaExportError(
                f"--output is {str(self.output)!r}, which is no name of a new directory",
                where="--output",
                fix="give a name, as ./bundle",
            )

    @property
    def exports_score(self) -> bool:
        """Whether the score's graph is a component. It needs a number of subspaces; 0 leaves that to the host."""
        asked = set(self.components) == set(ROLES) if self.score_component is None else self.score_component
        return asked and self.recipe.score.n_subspaces > 0

    @property
    def proves(self) -> bool:
        """Whether the bundle is run and proved, which takes all components."""
        return self.parity and set(self.components) == set(ROLES)


def _choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise VaExportError(f"{option} cannot be {value!r}", where=option, fix=f"use one of: {', '.join(choices)}")


def recipe_directory() -> Path:
    """Where the recipes lie: in the source tree when run from one, else in the installed package."""
    package = Path(__file__).parents[1]
    source = package.parent / "engines"
    return source if (source / "internvl2-tiny.toml").is_file() else package / "recipes"


def recipe_names() -> list[str]:
    """The recipes that `--model` takes by name."""
    return sorted(path.stem for path in recipe_directory().glob("*.toml"))


def resolve_model(model: str) -> Recipe:
    """The recipe for a recipe name, a local checkpoint directory or a hub id.

    Raises:
        VaExportError: none of the three, with the nearest recipe names.
    """
    if model in recipe_names():
        return read_recipe(recipe_directory() / f"{model}.toml")
    path = expanded("--model", model)
    if model and path.is_dir():
        return Recipe(name=path.resolve().name, checkpoint=str(path))
    if path.suffix == ".toml" and path.is_file():
        return read_recipe(path)
    looks_local = bool(model) and (model.startswith((".", "/", "~")) or path.exists() or model.count("/") > 1)
    if _HUB_ID.fullmatch(model) and not looks_local:
        return Recipe(name=model.split("/")[1], checkpoint=model)
    if looks_local:
        raise VaExportError("there is no checkpoint directory at this path", where=model, fix="check the path")
    nearest = difflib.get_close_matches(model.lower(), recipe_names(), n=3, cutoff=0.4)
    raise VaExportError(
        f"unknown model {model!r}",
        where="--model",
        fix=f"use one of {', '.join(nearest or recipe_names())}, a checkpoint directory, or a hub id (owner/name)",
    )


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file.

    Raises:
        VaExportError: not TOML, unknown or contradicting settings.
    """
    what, fix = "the recipe", "mend it, or begin with a recipe of this repository's engines/"
    data = parse(read_bytes(path, what=what, fix=fix), what=what, where=path, fix=fix, is_toml=True)
    match data:
        case {"score": {"n_subspaces": "auto"} as score}:
            score["n_subspaces"] = ScoreSettings.AUTOMATIC
    file = convert(data, RecipeFile, what=what, where=path, fix=fix)
    if bool(file.checkpoint) == bool(file.random_weights):
        raise VaExportError("a recipe names either a checkpoint or random_weights", where=path, fix=fix)
    return Recipe(name=path.stem, **asdict(file))


def with_overrides(
    recipe: Recipe,
    *,
    weights: str | None = None,
    seed: int | None = None,
    frames: int | None = None,
    revision: str | None = None,
    gains: Mapping[str, float | None] | None = None,
    score: Mapping[str, int | None] | None = None,
    limits: Mapping[str, int | None] | None = None,
) -> Recipe:
    """A recipe with what the command line says; None leaves a setting as it is.

    A limit that is lowered below what the engine was to be tuned for takes that along.

    Raises:
        VaExportError: a seed for weights that are not random, or values out of range.
    """
    if weights is not None:
        recipe = _with_weights(recipe, weights)
    if seed is not None and not recipe.is_random:
        raise VaExportError(
            f"{recipe.name} has a checkpoint: there are no random weights to seed",
            where="--seed",
            fix="leave --seed out, or ask for --weights random",
        )
    changed_gains = {name: value for name, value in (gains or {}).items() if value is not None}
    if "alpha_k" in changed_gains:  # said outright: it is not to be found from a target
        changed_gains |= {"target_visual_share": 0.0, "plain_visual_share": 0.0}
    given = {name: value for name, value in (limits or {}).items() if value is not None}
    for tuned, largest in (("opt_input_len", "max_input_len"), ("opt_frames", "max_frames")):
        if largest in given:
            given[tuned] = min(getattr(recipe.limits, tuned), given[largest])
    return replace(
        recipe,
        seed=recipe.seed if seed is None else seed,
        frames=recipe.frames if frames is None else frames,
        revision=recipe.revision if revision is None else revision,
        gains=replace(recipe.gains, **changed_gains),
        score=replace(recipe.score, **{k: v for k, v in (score or {}).items() if v is not None}),
        limits=replace(recipe.limits, **given),
    )


def _with_weights(recipe: Recipe, weights: str) -> Recipe:
    _choice("--weights", weights, WEIGHTS)
    if recipe.random_weights:
        if weights == "checkpoint":
            raise VaExportError(
                f"{recipe.name} has no checkpoint",
                where="--weights",
                fix="leave --weights out, or name another --model",
            )
        return recipe  # its own are random
    return replace(recipe, weights=weights)
