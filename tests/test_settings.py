"""Settings read themselves from tables and refuse what makes no sense."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from msgspec.structs import asdict
from refusals import refused

from va_export.documents import convert, encode
from va_export.errors import VaExportError
from va_export.settings import GainSettings, Limits, ScoreSettings, check_tolerances


def of(form: type[Any], values: Any) -> Any:
    return convert(values, form, what="the settings", where="recipe.toml", fix="mend it")


def test_defaults_are_the_papers() -> None:
    score = ScoreSettings()
    assert (score.rho, score.alpha_e, score.alpha_z, score.eps, score.max_iter) == (300, 800, 800, 2e-4, 10000)
    assert (score.n_subspaces, score.pca_rank) == (24, 0)


@pytest.mark.parametrize("settings", [ScoreSettings(pca_rank=48), GainSettings(9.5, 2.5, 4.0), Limits(max_frames=8)])
def test_json_and_back(settings: ScoreSettings | GainSettings | Limits) -> None:
    assert of(type(settings), json.loads(encode(settings))) == settings


@pytest.mark.parametrize(("table", "values", "place"), [
    (ScoreSettings, {"k": 3}, ""),
    (ScoreSettings, {"n_subspaces": 2.5}, ": n_subspaces"),
    (ScoreSettings, {"n_subspaces": float("inf")}, ": n_subspaces"),
    (ScoreSettings, {"n_subspaces": float("nan")}, ": n_subspaces"),
    (ScoreSettings, {"n_subspaces": "4"}, ": n_subspaces"),
    (ScoreSettings, {"n_subspaces": True}, ": n_subspaces"),
    (ScoreSettings, {"n_subspaces": "all"}, ": n_subspaces"),
    (ScoreSettings, {"pca_rank": "auto"}, ": pca_rank"),
    (ScoreSettings, {"rho": float("nan")}, ": rho"),
    (ScoreSettings, {"eps": float("inf")}, ": eps"),
    (ScoreSettings, [1], ""),
    (GainSettings, {"alpha_k": 1.0}, ""),
    (GainSettings, {"alpha_k": float("nan"), "alpha_v": 1}, ": alpha_k"),
    (GainSettings, {"alpha_k": 1, "alpha_v": float("inf")}, ": alpha_v"),
    (Limits, {"max_frames": "0"}, ": max_frames"),
])  # fmt: skip
def test_what_is_read_is_refused_with_its_place(table: type[Any], values: Any, place: str) -> None:
    with pytest.raises(VaExportError) as caught:
        of(table, values)
    assert caught.value.where == f"recipe.toml{place}" and caught.value.fix


@pytest.mark.parametrize(("table", "values", "where"), [
    (ScoreSettings, {"n_subspaces": -1}, "score settings"),
    (ScoreSettings, {"pca_rank": -1}, "score settings"),
    (ScoreSettings, {"rho": float("nan")}, "score settings"),
    (ScoreSettings, {"eps": float("inf")}, "score settings"),
    (ScoreSettings, {"max_iter": 0}, "score settings"),
    (GainSettings, {"alpha_k": -1.5, "alpha_v": 1}, "gain settings"),
    (GainSettings, {"alpha_k": float("nan"), "alpha_v": 1}, "gain settings"),
    (GainSettings, {"alpha_k": 1, "alpha_v": float("inf")}, "gain settings"),
    (GainSettings, {"alpha_k": 1, "alpha_v": 1, "target_visual_share": 1.0}, "gain settings"),
    (GainSettings, {"alpha_k": 1, "alpha_v": 1, "plain_visual_share": -0.1}, "gain settings"),
    (GainSettings, {"alpha_k": 1, "alpha_v": 1, "plain_visual_share": 0.5}, "gain settings"),
    (Limits, {"max_frames": 0}, "limits"),
    (Limits, {"max_input_len": 9000}, "limits"),
])  # fmt: skip
def test_ranges_hold_for_settings_made_in_code_and_read(table: type[Any], values: Any, where: str) -> None:
    with pytest.raises(VaExportError) as caught:
        table(**values)
    assert caught.value.where == where and caught.value.fix
    fix = caught.value.fix
    if all(math.isfinite(value) for value in values.values()):  # others are refused before, as no document holds them
        with pytest.raises(VaExportError) as caught:
            of(table, values)
        assert (caught.value.where, caught.value.fix) == (f"recipe.toml: {where}", fix)


def test_whole_numbers_are_numbers() -> None:
    settings = of(ScoreSettings, {"n_subspaces": 8, "rho": 300})
    assert settings == ScoreSettings(n_subspaces=8) and type(asdict(settings)["rho"]) is float


@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf")])
def test_tolerances(value: float) -> None:
    check_tolerances(None, 0.0)
    with refused("--atol", value):
        check_tolerances(value, None)
    with refused("--rtol", value):
        check_tolerances(0.1, value)
