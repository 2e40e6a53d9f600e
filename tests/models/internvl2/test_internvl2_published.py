"""The published sizes, known without a network: they describe models of the published number of parameters."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from refusals import refused

from va_export.checkpoint.hub import HubUnreachable
from va_export.export import source
from va_export.export.recipe import ExportOptions, recipe_names, resolve_model
from va_export.models import family_for, published_config
from va_export.models.family import Choices, ModelSpec
from va_export.models.internvl2.published import published_names, published_parameters
from va_export.models.internvl2.tiles import tiles


def spec_of(hub_id: str) -> ModelSpec:
    config = published_config(hub_id)
    assert config is not None
    return family_for(config).spec_from_config(config)


@pytest.mark.parametrize("hub_id", published_names())
def test_a_size_has_the_published_number_of_parameters(hub_id: str) -> None:
    spec = spec_of(hub_id)
    config = published_config(hub_id)
    assert config is not None
    count = sum(math.prod(weight.shape) for weight in family_for(config).weight_map(spec).values())
    # The publishers give one digit after the point; 0.94e9 has two.
    assert count == pytest.approx(published_parameters(hub_id), abs=0.05e9 if count > 1e9 else 0.005e9)


@pytest.mark.parametrize("hub_id", published_names())
def test_the_map_covers_the_full_size_model(hub_id: str) -> None:
    """Every parameter mapped, with its shape, none left over, at the published width (two decoder layers: all of them
    are made alike)."""
    config = published_config(hub_id)
    assert config is not None
    config["vision_config"]["num_hidden_layers"] = 2
    family = family_for(config)
    spec = family.spec_from_config(config, Choices(2))
    with torch.device("meta"):
        model = family.build_model(spec)
    assert {name: source.shape for name, source in family.weight_map(spec).items()} == {
        name: tuple(parameter.shape) for name, parameter in model.named_parameters()
    }


def test_every_size_is_usable_at_448_pixels() -> None:
    for hub_id in published_names():
        spec = spec_of(hub_id)
        assert tiles(spec).tokens_per_frame == 256 and tiles(spec).image_size == 448
        assert spec.image_token_id is not None and spec.eos_token_ids
        other = {"InternVL2-1B": 64, "InternVL2_5-1B": 64, "InternVL3-1B": 64, "InternVL2-4B": 96}
        assert spec.text.head_dim == other.get(hub_id.removeprefix("OpenGVLab/"), 128)


def test_the_6b_vision_tower_has_no_biases_and_normalised_queries_and_keys() -> None:
    for hub_id in published_names():
        config = spec_of(hub_id).hf_config["vision_config"]
        large = config["hidden_size"] == 3200
        assert large == hub_id.endswith(("26B", "38B", "40B", "76B", "78B"))
        assert (config["norm_type"] == "rms_norm") == large == config["use_qk_norm"] != config["attention_bias"]


def test_recipes_and_published_sizes_name_each_other() -> None:
    checkpoints = {resolve_model(name).checkpoint for name in recipe_names() if name.startswith("internvl")} - {""}
    assert set(published_names()) == checkpoints


def test_a_config_can_be_changed_without_changing_the_table() -> None:
    changed, again = published_config("OpenGVLab/InternVL2-8B"), published_config("OpenGVLab/InternVL2-8B")
    assert changed is not None and again is not None
    changed["llm_config"]["hidden_size"] = 1
    assert again["llm_config"]["hidden_size"] == 4096
    assert published_config("someone/else") is None


def unreachable(*_: object, **__: object) -> Path:
    raise HubUnreachable("the Hub cannot be reached", where="x")


def test_planning_needs_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(source, "download", unreachable)
    model = source.open_model(ExportOptions(recipe=resolve_model("internvl2-40b"), output=tmp_path / "b"), tmp_path)
    text = model.spec.text
    assert (text.hidden_size, text.num_layers, text.vocab_size) == (7168, 60, 64007)
    with refused("x", fix=False, kind=HubUnreachable):
        source.open_model(ExportOptions(recipe=resolve_model("someone/else"), output=tmp_path / "b"), tmp_path)
