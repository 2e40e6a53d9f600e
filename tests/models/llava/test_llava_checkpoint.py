"""Both layouts: sizes, names, newlines and prompts; what is not supported is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import va_export
from llava_layout import GOLDEN, golden_checkpoint
from refusals import refused

from va_export.checkpoint.files import Checkpoint
from va_export.export.recipe import resolve_model
from va_export.models import family_for, published_config
from va_export.models.llava.pooled import pooled
from va_export.models.llava.published import published_names
from va_export.models.llava.tiny import write_tiny_checkpoint
from va_export.models.llava.vision import VisionGraph
from va_export.models.parameters import check_checkpoint
from va_export.runtime.tokenizer import load_tokenizer


def config(name: str = "llava_video_tiny", **changed: Any) -> dict[str, Any]:
    return {**json.loads((GOLDEN / name / "config.json").read_text()), **changed}


TEXT = config("llava_onevision_tiny_hf")["text_config"]


@pytest.mark.parametrize("name", ["llava_video_tiny", "llava_onevision_tiny", "llava_onevision_tiny_hf"])
def test_every_parameter_has_its_tensor_and_every_tensor_a_use(name: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(golden_checkpoint(name, tmp_path))
    family = family_for(checkpoint.config)
    spec = family.spec_from_checkpoint(checkpoint)
    check_checkpoint(family, spec, checkpoint)
    with torch.device("meta"):
        parameters = dict(family.build_model(spec).named_parameters())
    weights = family.weight_map(spec)
    assert {key: source.shape for key, source in weights.items()} == {
        key: tuple(parameter.shape) for key, parameter in parameters.items()
    }
    used = {source.checkpoint_name for source in weights.values()}
    assert set(checkpoint.names()) - used == spec.unread & set(checkpoint.names())
    assert len(spec.unread & set(checkpoint.names())) == 2  # the tower's last norm


def test_the_towers_sizes_are_read_off_the_tensors() -> None:
    checkpoint = Checkpoint.open(GOLDEN / "llava_video_tiny")
    spec = family_for(checkpoint.config).spec_from_checkpoint(checkpoint)
    vision = pooled(spec)
    assert (vision.hidden_size, vision.image_size, vision.patch_size, vision.num_heads) == (64, 98, 14, 16)
    # What a bundle's config.json then says, so that it can be opened without the tensors.
    again = family_for(checkpoint.config).spec_from_config({**checkpoint.config, **spec.found})
    assert pooled(again) == vision


@pytest.mark.parametrize(
    ("pooling", "newline", "merge", "per_frame", "after"),
    [
        ("bilinear", "grid", "spatial_unpad", 14 * 15, 0),
        ("average", "grid", "spatial_unpad", 13 * 14, 0),
        ("bilinear", "one_token", "spatial_unpad", 14 * 14, 1),
        ("bilinear", "one_token", "spatial", 14 * 14, 0),  # the original adds it only where the type says unpad
        ("bilinear", "frame", "spatial_unpad", 14 * 14 + 1, 0),
        ("average", "no_token", "spatial_unpad", 13 * 13, 0),
    ],
)
def test_tokens_of_the_published_tower(pooling: str, newline: str, merge: str, per_frame: int, after: int) -> None:
    content = config(mm_spatial_pool_mode=pooling, mm_newline_position=newline, mm_patch_merge_type=merge)
    vision = pooled(family_for(content).spec_from_config(content))
    assert (vision.tokens_per_frame, vision.tokens_after) == (per_frame, after)


@pytest.mark.parametrize("newline", ["grid", "frame", "one_token", "no_token"])
def test_averages_and_newlines_by_hand(newline: str) -> None:
    """From what the projector gives, in float64: 7 × 7 patches, whose last row and column averages leave out."""
    content = {"mm_spatial_pool_mode": "average", "mm_newline_position": newline}
    checkpoint = Checkpoint.open(GOLDEN / "llava_video_tiny")
    checkpoint.config |= content
    family = family_for(checkpoint.config)
    spec = family.spec_from_checkpoint(checkpoint)
    model = family.build_model(spec)
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    seen: list[torch.Tensor] = []
    model.model.multi_modal_projector.register_forward_hook(lambda _, __, out: seen.append(out))
    graph = VisionGraph(model, pooled(spec))
    with torch.no_grad():
        found = graph(torch.randn(2, 3, 98, 98)).numpy()
        line = None if newline == "no_token" else model.model.image_newline.double().numpy()
    expected: list[np.ndarray] = []
    for frame in seen[0].double().numpy().reshape(2, 7, 7, -1):
        for row in (0, 2, 4):
            expected += [frame[row : row + 2, column : column + 2].mean((0, 1)) for column in (0, 2, 4)]
            expected += [line] if newline == "grid" else []
        expected += [line] if newline == "frame" else []
    expected += [line] if newline == "one_token" else []
    np.testing.assert_allclose(found, np.stack(expected), rtol=0, atol=1e-6 * np.abs(expected[0]).max())


@pytest.mark.parametrize(
    ("name", "changed", "key"),
    [
        ("llava_video_tiny", {"mm_spatial_pool_mode": "max"}, "mm_spatial_pool_mode"),
        ("llava_video_tiny", {"add_faster_video": True}, "add_faster_video"),
        ("llava_video_tiny", {"mm_projector_type": "linear"}, "mm_projector_type"),
        ("llava_video_tiny", {"mm_vision_select_layer": -1}, "mm_vision_select_layer"),
        ("llava_video_tiny", {"num_attention_heads": 3}, "num_attention_heads"),
        ("llava_video_tiny", {"rope_theta": None}, "rope_theta"),
        ("llava_onevision_tiny_hf", {"video_token_index": 768}, "video_token_index"),
        ("llava_onevision_tiny_hf", {"vision_feature_layer": -2}, "vision_feature_layer"),
        ("llava_onevision_tiny_hf", {"text_config": {**TEXT, "rope_scaling": {}}}, "text_config: rope_scaling"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(name: str, changed: dict[str, Any], key: str) -> None:
    content = config(name, **changed)
    with refused(f"config.json: {key}"):
        family_for(content).spec_from_config(content)


@pytest.mark.parametrize("name", published_names())
def test_published_sizes_are_those_of_the_name(name: str) -> None:
    content = published_config(name)
    assert content is not None
    spec = family_for(content).spec_from_config(content)
    sources = {source.checkpoint_name: source.shape for source in family_for(content).weight_map(spec).values()}
    total = sum(torch.Size(shape).numel() for shape in sources.values())
    stated = next(size for part, size in {"0.5b": 0.89e9, "72b": 73.1e9, "7b": 8.03e9}.items() if part in name.lower())
    assert abs(total / stated - 1) < 0.02
    assert spec.vision.positions_per_frame == 729


def test_a_prompt_is_cut_at_the_video(tmp_path: Path) -> None:
    """As the original: what stands before and behind the video is tokenized by itself."""
    checkpoint = Checkpoint.open(write_tiny_checkpoint(tmp_path))
    family = family_for(checkpoint.config)
    processing = family.processing(family.spec_from_checkpoint(checkpoint), checkpoint)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    ids = processing.input_ids("why?", 2, tokenizer)[0].tolist()
    before = tokenizer.encode("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n")
    after = tokenizer.encode("\nwhy?<|im_end|>\n<|im_start|>assistant\n")
    assert ids == [*before, *[-200] * 40, *after]
    with refused("prompt", 41, 40):
        processing.input_ids("<image>", 2, tokenizer)


def recipe(path: Path, checkpoint: Path, setting: str) -> Path:
    path.write_text(f'checkpoint = "{checkpoint}"\n[config]\n{setting}\n', encoding="utf-8")
    return path


def test_a_recipe_asks_for_other_pooling_and_newlines(tmp_path: Path) -> None:
    """As the official wrapper does; the bundle says what it was made with, and the checkpoint stays as it is."""
    asked = recipe(tmp_path / "a.toml", GOLDEN / "llava_video_tiny", 'mm_spatial_pool_mode = "average"')
    outcome = va_export("--model", asked, "-o", tmp_path / "b", "--onnx-only", "--components", "embedding")
    assert outcome.code == 0, outcome.stderr
    said = json.loads((tmp_path / "b" / "config.json").read_text())
    assert (said["mm_spatial_pool_mode"], config()["mm_spatial_pool_mode"]) == ("average", "bilinear")
    processing = json.loads((tmp_path / "b" / "processing.json").read_text())
    assert processing["grid"] == [3, 4] and processing["tokens_per_frame"] == 12  # of 7 × 7 patches, one newline a row


@pytest.mark.parametrize(
    ("name", "setting", "place"),
    [
        ("llava_video_tiny", 'hidden_act = "gelu"', "hidden_act"),
        ("llava_video_tiny", 'mm_spatial_pool_mod = "average"', "mm_spatial_pool_mod"),
        ("llava_video_tiny", 'mm_spatial_pool_mode = "max"', "mm_spatial_pool_mode"),
        ("llava_onevision_tiny_hf", 'mm_spatial_pool_mode = "average"', "mm_spatial_pool_mode"),
    ],
)
def test_what_is_no_matter_of_choice_is_refused(name: str, setting: str, place: str, tmp_path: Path) -> None:
    asked = recipe(tmp_path / "a.toml", golden_checkpoint(name, tmp_path), setting)
    outcome = va_export("--model", asked, "-o", tmp_path / "b", "--onnx-only", "--components", "embedding")
    assert outcome.code == 2 and place in outcome.message and not (tmp_path / "b").exists(), outcome.stderr


def test_recipes_for_both_settings_that_the_field_uses() -> None:
    for size in ("7b", "72b"):
        own, average = (resolve_model(f"llava-video-{size}{kind}") for kind in ("", "-average"))
        content = published_config(own.checkpoint)
        assert content is not None and own.checkpoint == average.checkpoint and not own.config
        shapes = [pooled(family_for(content).spec_from_config({**content, **one.config})) for one in (own, average)]
        assert [shape.tokens_per_frame for shape in shapes] == [210, 182]
