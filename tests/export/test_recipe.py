"""Recipes: where a model's name leads, and what the command line may change."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusals import refused

from va_export.errors import VaExportError
from va_export.export.recipe import ExportOptions, Recipe, read_recipe, recipe_names, resolve_model, with_overrides
from va_export.settings import ScoreSettings


def test_every_recipe_that_is_shipped_can_be_read() -> None:
    assert {"internvl2-tiny", "internvl2-8b"} <= set(recipe_names())
    for name in recipe_names():
        recipe = resolve_model(name)
        assert recipe.name == name and recipe.description
        ExportOptions(recipe=recipe, output=Path("b"))


def test_the_8b_recipe_has_the_papers_settings() -> None:
    recipe = resolve_model("internvl2-8b")
    assert recipe.checkpoint == "OpenGVLab/InternVL2-8B" and recipe.frames == 8
    assert (recipe.gains.alpha_q, recipe.gains.alpha_k, recipe.gains.alpha_v) == (4.0, 9.5, 2.5)
    assert recipe.score.n_subspaces == 24 and recipe.score.pca_rank == 0


def test_a_directory_a_hub_id_and_a_recipe_file(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == Recipe(name=tmp_path.name, checkpoint=str(tmp_path))
    assert resolve_model("OpenGVLab/InternVL2-4B") == Recipe(name="InternVL2-4B", checkpoint="OpenGVLab/InternVL2-4B")
    path = tmp_path / "mine.toml"
    path.write_text('checkpoint = "a/b"\nframes = 4\n[gains]\nalpha_k = 2.0\nalpha_v = 3\n')
    recipe = resolve_model(str(path))
    assert (recipe.name, recipe.checkpoint, recipe.frames, recipe.gains.alpha_v) == ("mine", "a/b", 4, 3.0)


@pytest.mark.parametrize("output", [".", "", "./", "/", "..", "x/.."])
def test_an_output_without_a_name_of_its_own_is_refused(output: str) -> None:
    with refused("--output", repr(str(Path(output)))):
        ExportOptions(recipe=resolve_model("internvl2-tiny"), output=Path(output))


def test_no_name_is_not_the_directory_that_one_is_in() -> None:
    with refused("--model", "''"):
        resolve_model("")


@pytest.mark.parametrize(("model", "words"), [
    ("internvl2-tny", "internvl2-tiny"),
    ("INTERNVL2-8", "internvl2-8b"),
    ("gpt", "internvl2-8b"),  # nothing is near: all are named
])  # fmt: skip
def test_unknown_names_are_told_the_nearest(model: str, words: str) -> None:
    with refused("--model", model) as caught:
        resolve_model(model)
    assert caught.value.fix is not None and words in caught.value.fix


@pytest.mark.parametrize("model", ["./none", "/none/at/all", "~/none-at-all", "a/b/c"])
def test_paths_that_lead_nowhere(model: str) -> None:
    with refused(model):
        resolve_model(model)


@pytest.mark.parametrize(("text", "place"), [
    ("frames = ", ""),
    ("\xff", ""),
    ("", ""),
    ('checkpoint = "a/b"\nrandom_weights = "x"', ""),
    ('checkpoint = "a/b"\nframe = 3', ""),
    ('checkpoint = "a/b"\nname = "b"', ""),
    ('checkpoint = "a/b"\nframes = "8"', ": frames"),
    ('checkpoint = "a/b"\nframes = true', ": frames"),
    ('checkpoint = "a/b"\nseed = 1.5', ": seed"),
    ('checkpoint = "a/b"\nseed = -1', None),
    ("checkpoint = 3", ": checkpoint"),
    ('checkpoint = "a/b"\ngains = 3', ": gains"),
    ('checkpoint = "a/b"\nscore = 3', ": score"),
    ('checkpoint = "a/b"\n[gains]\nalpha_k = 1', ": gains"),
    ('checkpoint = "a/b"\n[score]\nn_subspaces = inf', ": score.n_subspaces"),
    ('checkpoint = "a/b"\n[score]\nn_subspaces = "all"', ": score.n_subspaces"),
    ('checkpoint = "a/b"\n[limits]\nmax_frames = 0', ": limits"),
])  # fmt: skip
def test_refuses_recipes(tmp_path: Path, text: str, place: str | None) -> None:
    (tmp_path / "bad.toml").write_text(text, encoding="latin-1")
    with pytest.raises(VaExportError) as caught:
        read_recipe(tmp_path / "bad.toml")
    assert caught.value.where == ("recipe bad" if place is None else f"{tmp_path / 'bad.toml'}{place}")
    assert caught.value.fix


def test_a_misspelt_setting_is_told_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text('checkpoint = "a/b"\n[score]\nn_subspace = 3\n')
    with pytest.raises(VaExportError) as caught:
        read_recipe(tmp_path / "bad.toml")
    assert caught.value.where == f"{tmp_path / 'bad.toml'}: score" and "'n_subspaces'" in caught.value.what


def test_overrides_change_only_what_is_given() -> None:
    recipe = resolve_model("internvl2-tiny")
    assert with_overrides(recipe) == recipe
    changed = with_overrides(
        recipe, seed=3, frames=4, gains={"alpha_k": 0.0}, score={"pca_rank": 16}, limits={"max_frames": 4}
    )
    assert (changed.seed, changed.frames, changed.gains.alpha_k, changed.score.pca_rank) == (3, 4, 0.0, 16)
    assert changed.gains.alpha_v == recipe.gains.alpha_v and changed.score.n_subspaces == recipe.score.n_subspaces
    assert (changed.limits.max_frames, changed.limits.opt_frames) == (4, 4)  # tuned for no more than there can be
    assert changed.limits.opt_input_len == recipe.limits.opt_input_len


def test_what_is_found_and_not_given(tmp_path: Path) -> None:
    path = tmp_path / "found.toml"
    path.write_text(
        'checkpoint = "a/b"\n[score]\nn_subspaces = "auto"\n'
        "[gains]\nalpha_k = 9.5\nalpha_v = 2.5\ntarget_visual_share = 0.6\nplain_visual_share = 0.3\n"
    )
    recipe = read_recipe(path)
    assert recipe.score.n_subspaces == ScoreSettings.AUTOMATIC != ScoreSettings().n_subspaces
    assert (recipe.gains.target_visual_share, recipe.gains.plain_visual_share) == (0.6, 0.3)
    outright = with_overrides(recipe, gains={"alpha_k": 2.0}).gains
    assert (outright.alpha_k, outright.target_visual_share) == (2.0, 0.0), "a gain given outright is not looked for"
    assert with_overrides(recipe, gains={"alpha_v": 2.0}).gains.target_visual_share == 0.6


def test_a_seed_needs_random_weights() -> None:
    with refused("--seed", "internvl2-8b"):
        with_overrides(resolve_model("internvl2-8b"), seed=1)


def test_the_score_comes_with_a_whole_model_or_by_name() -> None:
    def exports_score(**options: object) -> bool:
        return ExportOptions(recipe=resolve_model("internvl2-tiny"), output=Path("b"), **options).exports_score  # type: ignore[arg-type]

    assert exports_score() and not exports_score(components=("vision",))
    assert not exports_score(score_component=False) and exports_score(components=("vision",), score_component=True)
    alone = ExportOptions(recipe=resolve_model("internvl2-tiny"), output=Path("b"), components=(), score_component=True)
    assert alone.exports_score and not alone.proves
    with refused("--components"):
        exports_score(components=())
