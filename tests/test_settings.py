"""Settings read themselves from tables and refuse what makes no sense."""

from __future__ import annotations

import json
from typing import Any

import pytest

from va_export.errors import VaExportError
from va_export.settings import GainSettings, Limits, ScoreSettings, check_tolerances


def test_defaults_are_the_papers() -> None:
    score = ScoreSettings()
    assert (score.rho, score.alpha_e, score.alpha_z, score.eps, score.max_iter) == (300, 800, 800, 2e-4, 10000)
    assert (score.n_subspaces, score.pca_rank) == (24, 0)


@pytest.mark.parametrize("settings", [ScoreSettings(pca_rank=48), GainSettings(9.5, 2.5, 4.0), Limits(max_frames=8)])
def test_json_and_back(settings: ScoreSettings | GainSettings | Limits) -> None:
    assert type(settings).from_mapping(json.loads(json.dumps(settings.to_mapping())), "test") == settings


@pytest.mark.parametrize(("table", "values", "words"), [
    (ScoreSettings, {"k": 3}, "unknown setting k"),
    (ScoreSettings, {"n_subspaces": 2.5}, "whole number"),
    (ScoreSettings, {"n_subspaces": float("inf")}, "whole number"),
    (ScoreSettings, {"n_subspaces": float("nan")}, "whole number"),
    (ScoreSettings, {"n_subspaces": "4"}, "whole number"),
    (ScoreSettings, {"n_subspaces": True}, "whole number"),
    (ScoreSettings, {"n_subspaces": -1}, "above 0, or automatic"),
    (ScoreSettings, {"n_subspaces": "all"}, "whole number or 'auto'"),
    (ScoreSettings, {"pca_rank": "auto"}, "pca_rank must be a whole number, not 'auto'"),
    (ScoreSettings, {"rho": float("nan")}, "above 0 and finite"),
    (ScoreSettings, {"eps": float("inf")}, "above 0 and finite"),
    (ScoreSettings, {"pca_rank": -1}, "pca_rank"),
    (ScoreSettings, [1], "a table is expected"),
    (GainSettings, {"alpha_k": 1.0}, "alpha_v"),
    (GainSettings, {"alpha_k": -1.5, "alpha_v": 1}, "negative"),
    (GainSettings, {"alpha_k": float("nan"), "alpha_v": 1}, "alpha_k"),
    (GainSettings, {"alpha_k": 1, "alpha_v": float("inf")}, "alpha_v"),
    (GainSettings, {"alpha_k": 1, "alpha_v": 1, "target_visual_share": 1.0}, "target_visual_share must lie in"),
    (GainSettings, {"alpha_k": 1, "alpha_v": 1, "plain_visual_share": -0.1}, "plain_visual_share must lie in"),
    (GainSettings, {"alpha_k": 1, "alpha_v": 1, "plain_visual_share": 0.5}, "no use without target_visual_share"),
    (Limits, {"max_frames": 0}, "max_frames must be at least 1"),
    (Limits, {"max_input_len": 9000}, "would not fit the cache"),
])  # fmt: skip
def test_refuses(table: type[Any], values: Any, words: str) -> None:
    with pytest.raises(VaExportError, match=words) as caught:
        table.from_mapping(values, "recipe.toml: [table]")
    assert caught.value.where and caught.value.fix


def test_automatic_is_a_word_in_a_recipe_and_a_number_in_the_op() -> None:
    automatic = ScoreSettings.from_mapping({"n_subspaces": "auto"}, "test")
    assert automatic == ScoreSettings(n_subspaces=ScoreSettings.AUTOMATIC) != ScoreSettings()
    assert automatic.to_mapping()["n_subspaces"] == 0
    assert ScoreSettings.from_mapping(automatic.to_mapping(), "test") == automatic


def test_whole_floats_are_whole_numbers() -> None:
    assert ScoreSettings.from_mapping({"n_subspaces": 8.0, "rho": 300}, "test") == ScoreSettings(n_subspaces=8)


@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf")])
def test_tolerances(value: float) -> None:
    check_tolerances(None, 0.0)
    with pytest.raises(VaExportError, match="tolerance"):
        check_tolerances(value, None)
    with pytest.raises(VaExportError, match="tolerance"):
        check_tolerances(0.1, value)
