"""Every parameter has its source, in the published layout, tied or not, and as transformers 5 names its modules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file, save_file

from va_export.checkpoint.files import Checkpoint
from va_export.models import family_for
from va_export.models.parameters import check_checkpoint, load_model

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "qwen2_5_vl_tiny"


def opened(directory: Path):  # type: ignore[no-untyped-def]
    checkpoint = Checkpoint.open(directory)
    family = family_for(checkpoint.config)
    spec = family.spec_from_checkpoint(checkpoint)
    check_checkpoint(family, spec, checkpoint)
    return family, spec, checkpoint


def rewritten(directory: Path, weights: dict[str, torch.Tensor], **changed: object) -> Path:
    directory.mkdir()
    save_file(weights, directory / "model.safetensors")
    config = {**json.loads((GOLDEN / "config.json").read_text()), **changed}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module")
def original() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "model.safetensors")


def test_every_parameter_is_mapped_and_every_tensor_used(original: dict[str, torch.Tensor]) -> None:
    family, spec, _ = opened(GOLDEN)
    with torch.device("meta"):
        parameters = dict(family.build_model(spec).named_parameters())
    weights = family.weight_map(spec)
    assert weights.keys() == parameters.keys()
    assert {source.checkpoint_name for source in weights.values()} == original.keys()
    assert all(weights[name].shape == tuple(parameter.shape) for name, parameter in parameters.items())


def test_module_names_of_transformers_5_are_read_too(original: dict[str, torch.Tensor], tmp_path: Path) -> None:
    renames = (("visual.", "model.visual."), ("model.", "model.language_model."))
    renamed = {}
    for name, tensor in original.items():
        before, after = next(((a, b) for a, b in renames if name.startswith(a)), ("", ""))
        renamed[after + name.removeprefix(before)] = tensor
    family, spec, checkpoint = opened(rewritten(tmp_path / "nested", renamed))
    model, expected = load_model(family, spec, checkpoint), load_model(*opened(GOLDEN))
    for (name, one), (_, other) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_tied_head_is_the_embedding(original: dict[str, torch.Tensor], tmp_path: Path) -> None:
    tied = {name: tensor for name, tensor in original.items() if name != "lm_head.weight"}
    model = load_model(*opened(rewritten(tmp_path / "tied", tied, tie_word_embeddings=True)))
    assert torch.equal(model.lm_head.weight, model.model.language_model.embed_tokens.weight)
    # A file that has both keeps both, as transformers 5 does.
    both = load_model(*opened(rewritten(tmp_path / "both", original, tie_word_embeddings=True)))
    assert torch.equal(both.lm_head.weight, original["lm_head.weight"])


def test_a_missing_head_is_named_where_it_is_not_tied(original: dict[str, torch.Tensor], tmp_path: Path) -> None:
    headless = {name: tensor for name, tensor in original.items() if name != "lm_head.weight"}
    with refused(str(tmp_path), "lm_head.weight"):
        opened(rewritten(tmp_path / "headless", headless))


def test_settings_that_contradict_each_other_are_refused(original: dict[str, torch.Tensor], tmp_path: Path) -> None:
    directory = rewritten(tmp_path / "other", original)
    (directory / "preprocessor_config.json").write_text(json.dumps({"patch_size": 16}))
    family, spec, checkpoint = opened(directory)
    with refused("preprocessor_config.json: patch_size", 16, 14):
        family.processing(spec, checkpoint)
    (directory / "preprocessor_config.json").write_text(json.dumps({"max_pixels": 100}))
    with refused("preprocessor_config.json: max_pixels", 100):
        family.processing(spec, checkpoint)


def test_missing_settings_are_told_and_the_published_taken(original: dict[str, torch.Tensor], tmp_path: Path) -> None:
    family, spec, checkpoint = opened(rewritten(tmp_path / "bare", original))
    processing = family.processing(spec, checkpoint)
    assert processing.mean == (0.48145466, 0.4578275, 0.40821073) and processing.video_pixels == (200704, 602112)
    assert any("preprocessor_config.json" in note for note in checkpoint.notes)
