"""Limits that contradict each other are refused before any engine is built, or anything is traced."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec.structs import replace
from refusals import refused

from va_export.export import build_engines
from va_export.export.build_engines import plan_engines
from va_export.export.recipe import ExportOptions, Recipe
from va_export.export.source import Model
from va_export.models import family_named, published_config
from va_export.progress import StageDisplay
from va_export.settings import Limits

LIMITS = Limits(max_input_len=4096, max_frames=16, opt_input_len=2304, opt_frames=8)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    """InternVL2-8B, of 256 visual tokens a frame, and a TensorRT-RTX to plan for."""
    rtx = SimpleNamespace(label="TensorRT-RTX", flavor="tensorrt-rtx")
    monkeypatch.setattr(build_engines, "available_flavors", lambda: ("tensorrt-rtx",))
    monkeypatch.setattr(build_engines, "load_tensorrt", lambda _: rtx)
    monkeypatch.setattr(build_engines, "check_targets", lambda *_: None)
    config = published_config("OpenGVLab/InternVL2-8B")
    assert config is not None
    family = family_named("internvl2")
    return Model(family, family.spec_from_config(config))


def plan(model: Model, limits: Limits, tmp_path: Path) -> tuple[str, ...]:
    options = ExportOptions(
        Recipe(name="m", checkpoint="m", limits=limits), tmp_path / "b", attention="native", flavor="tensorrt-rtx"
    )
    return plan_engines(options, model, StageDisplay()).flavors


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"opt_input_len": 5000}, ["opt_input_len", 5000, "max_input_len", 4096]),
        ({"opt_frames": 17}, ["opt_frames", 17, "max_frames", 16]),
        ({"max_frames": 17}, ["max_frames", 17, 4352, "max_input_len"]),
    ],
)
def test_limits_that_contradict_each_other_are_named(
    model: Model, tmp_path: Path, changes: dict[str, int], named: list[object]
) -> None:
    with refused("limits", *named):
        plan(model, replace(LIMITS, **changes), tmp_path)


def test_limits_that_just_fit_are_planned(model: Model, tmp_path: Path) -> None:
    assert plan(model, LIMITS, tmp_path) == ("tensorrt-rtx",)
