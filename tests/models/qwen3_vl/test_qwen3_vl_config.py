"""config.json as it is published and as transformers 5 writes it, and what of it is refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refused

from va_export.checkpoint.files import Checkpoint
from va_export.models import family_for
from va_export.models.family import Choices, ModelSpec
from va_export.models.parameters import check_checkpoint, load_model
from va_export.models.patch_shape import patches
from va_export.models.qwen3_vl.published import published_config, published_names
from va_export.models.qwen3_vl.tiny import write_tiny_checkpoint


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture
def config(tiny: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tiny / "config.json").read_text())
    return content


def spec(content: dict[str, Any], **choices: Any) -> ModelSpec:
    return family_for(content).spec_from_config(content, Choices(**choices))


def test_sizes_are_read(config: dict[str, Any]) -> None:
    found = spec(config)
    assert (found.text.num_layers, found.text.head_dim, found.text.deepstack_layers) == (3, 32, 2)
    assert [found.text.width_at(layer) for layer in range(4)] == [288, 192, 96, 96]
    assert patches(found).visual_tokens(16) == 8 * 768 and patches(found).visual_tokens(1) == 2048
    assert patches(spec(config, max_pixels=65536)).visual_tokens(8) == 4 * 64


def test_what_transformers_5_writes_is_the_same_model(tiny: Path, tmp_path: Path) -> None:
    from transformers import Qwen3VLForConditionalGeneration

    theirs = Qwen3VLForConditionalGeneration.from_pretrained(tiny)
    theirs.save_pretrained(tmp_path / "saved")
    checkpoints = [Checkpoint.open(directory) for directory in (tiny, tmp_path / "saved")]
    family = family_for(checkpoints[0].config)
    first, second = (family.spec_from_checkpoint(checkpoint) for checkpoint in checkpoints)
    for own, checkpoint in ((first, checkpoints[0]), (second, checkpoints[1])):
        check_checkpoint(family, own, checkpoint)
    assert (first.text, first.vision, first.hf_config) == (second.text, second.vision, second.hf_config)
    one, other = load_model(family, first, checkpoints[0]), load_model(family, second, checkpoints[1])
    for (name, weight), (_, same) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(weight, same), name


def test_every_parameter_is_mapped(config: dict[str, Any]) -> None:
    family, own = family_for(config), spec(config)
    with torch.device("meta"):
        parameters = dict(family.build_model(own).named_parameters())
    weights = family.weight_map(own)
    assert {name: source.shape for name, source in weights.items()} == {
        name: tuple(parameter.shape) for name, parameter in parameters.items()
    }


def test_tied_models_take_the_embedding_for_the_head(config: dict[str, Any]) -> None:
    family = family_for(config)
    tied = spec({**config, "tie_word_embeddings": True})
    assert family.weight_map(tied)["lm_head.weight"].checkpoint_name == "model.language_model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("part", "changed", "key", "named"),
    [
        ("text_config", {"rope_scaling": {"mrope_section": [6, 5, 6]}}, "rope_scaling.mrope_section", [[6, 5, 6], 32]),
        ("text_config", {"rope_scaling": {"mrope_section": [4, 6, 6]}}, "rope_scaling.mrope_section", [[4, 6, 6]]),
        ("text_config", {"rope_scaling": {"mrope_section": [8, 8]}}, "rope_scaling.mrope_section", [[8, 8]]),
        (
            "text_config",
            {"rope_scaling": {"mrope_section": [6, 5, 5], "mrope_interleaved": False}},
            "rope_scaling.mrope_interleaved",
            [],
        ),
        ("text_config", {"rope_scaling": {"rope_type": "yarn", "mrope_section": [6, 5, 5]}}, "rope_scaling", ["yarn"]),
        ("text_config", {"rope_scaling": None}, "rope_scaling.mrope_section", []),
        ("text_config", {"rope_theta": None}, "rope_theta", []),
        ("text_config", {"rope_parameters": {"rope_theta": 5.0}}, "rope_theta", []),
        ("text_config", {"num_attention_heads": 3}, "num_attention_heads", [3]),
        ("text_config", {"hidden_act": "gelu"}, "hidden_act", []),
        ("text_config", {"eos_token_id": 700}, "eos_token_id", [700]),
        ("vision_config", {"out_hidden_size": 64}, "out_hidden_size", [64, 96]),
        ("vision_config", {"num_position_embeddings": 50}, "num_position_embeddings", [50]),
        ("vision_config", {"deepstack_visual_indexes": [0, 4]}, "deepstack_visual_indexes", [[0, 4]]),
        ("vision_config", {"deepstack_visual_indexes": [2, 0]}, "deepstack_visual_indexes", [[2, 0]]),
        ("vision_config", {"num_heads": 3}, "num_heads", [64, 3]),
        ("vision_config", {"hidden_act": "silu"}, "hidden_act", []),
        ("vision_config", {"rope_parameters": {"rope_type": "linear"}}, "rope_parameters.rope_type", []),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    part: str, changed: dict[str, Any], key: str, named: list[object], config: dict[str, Any]
) -> None:
    with refused(f"config.json: {part}.{key}", *named):
        spec({**config, part: {**config[part], **changed}})


def test_other_refusals_are_by_name_too(config: dict[str, Any], tmp_path: Path) -> None:
    with refused("config.json: video_token_id", 700):
        spec({**config, "video_token_id": 700})
    with refused("config.json: architectures", "Qwen3VLMoeForConditionalGeneration"):
        family_for({**config, "architectures": ["Qwen3VLMoeForConditionalGeneration"]})
    with refused("--max-pixels", 100, 32):
        spec(config, max_pixels=100)
    checkpoint = Checkpoint.open(write_tiny_checkpoint(tmp_path / "other"))
    family = family_for(checkpoint.config)
    own = family.spec_from_checkpoint(checkpoint)
    settings = json.loads((tmp_path / "other" / "preprocessor_config.json").read_text())
    for place, wrong, named in (
        ("preprocessor_config.json: patch_size", {"patch_size": 14}, [14, 16]),
        ("video_preprocessor_config.json: image_mean", {"image_mean": [0.4, 0.5, 0.5]}, [0.4]),
        (
            "video_preprocessor_config.json: size.longest_edge",
            {"size": {"shortest_edge": 1, "longest_edge": 100}},
            [100],
        ),
    ):
        path = tmp_path / "other" / place.split(":")[0]
        path.write_text(json.dumps({**settings, **wrong}))
        with refused(place, *named):
            family.processing(own, checkpoint)
        path.write_text(json.dumps(settings))


@pytest.mark.parametrize("name", published_names())
def test_published_sizes_make_a_model_of_that_size(name: str) -> None:
    """Parameters as the Hub counts them, a tied matrix once; to half a percent, for they are rounded."""
    content = published_config(name)
    assert content is not None
    weights = family_for(content).weight_map(spec(content))
    tensors = {source.checkpoint_name: source.checkpoint_shape for source in weights.values()}
    total = sum(math.prod(shape) for shape in tensors.values())
    stated = {"2B": 2.13e9, "4B": 4.44e9, "8B": 8.77e9, "32B": 33.4e9}[name.split("-")[-2]]
    assert abs(total / stated - 1) < 0.005
