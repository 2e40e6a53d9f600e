"""The tiny checkpoint: the same bytes for the same seed, and a model that is worth testing with."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers

from va_export.anchor.hugging_face import anchors
from va_export.checkpoint.files import Checkpoint
from va_export.models import family_for, family_named
from va_export.models.internvl2.tiles import tiles
from va_export.models.internvl2.tiny import SPECIAL_TOKENS
from va_export.models.parameters import check_checkpoint, load_model
from va_export.models.tiny_files import _byte_characters
from va_export.runtime.tokenizer import load_tokenizer

WEIGHTS_SHA256 = "7d3599ee98eabdc40ea8466c89b5ad0282f787d85c736ef67796b16f1cdaa0ad"  # seed 0


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family_named("internvl2").write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


def test_same_seed_same_bytes(directory: Path, tmp_path: Path) -> None:
    family = family_named("internvl2")
    again, other = family.write_tiny_checkpoint(tmp_path / "a"), family.write_tiny_checkpoint(tmp_path / "b", seed=1)
    files = sorted(path.name for path in directory.iterdir())
    assert files == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    for name in files:
        assert (again / name).read_bytes() == (directory / name).read_bytes()
    weights = (directory / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == WEIGHTS_SHA256
    assert (other / "model.safetensors").read_bytes() != weights
    assert len(weights) < 3_000_000


def test_has_the_original_layout_and_passes_its_checks(directory: Path) -> None:
    checkpoint = Checkpoint.open(directory)
    family = family_for(checkpoint.config)
    spec = family.spec_from_checkpoint(checkpoint)
    check_checkpoint(family, spec, checkpoint)
    assert checkpoint.has_tokenizer
    assert tiles(spec).tokens_per_frame == 16
    assert spec.image_token_id == 262
    assert spec.eos_token_ids == (257, 259)  # </s> and <|im_end|>


def test_tokenizer_knows_every_byte_and_the_special_tokens(directory: Path) -> None:
    assert sorted(_byte_characters()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = load_tokenizer(directory)
    assert tokenizer is not None
    assert tokenizer.vocab_size == 256 + len(SPECIAL_TOKENS)
    text = "What is 视频? \n🚲 é"
    assert tokenizer.encode(text) == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text
    assert tokenizer.encode("<img><IMG_CONTEXT></img>") == [260, 262, 261]


def test_frames_and_anchors_matter(directory: Path) -> None:
    checkpoint = Checkpoint.open(directory)
    family = family_for(checkpoint.config)
    spec = family.spec_from_checkpoint(checkpoint)
    processing = family.processing(spec, checkpoint)
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    frames = np.stack([np.roll(np.broadcast_to(ramp[:, None], (64, 64, 3)) * (i + 1), 9 * i, 0) for i in range(4)])
    pixels = torch.from_numpy(processing.pixel_values(frames))
    given = np.array([[256, 5, 6, spec.image_token_id, 7, 8]])
    prepared = processing.prepare_ids(given, processing.vision_inputs(frames), max_frames=4)
    ids = torch.from_numpy(prepared.input_ids)
    model = load_model(family, spec, checkpoint)
    score = torch.where(ids[0] == spec.image_token_id, torch.linspace(0, 1, ids.shape[1]), 0.0)
    with torch.no_grad():
        tokens = model.get_image_features(
            pixels, vision_feature_layer=-1, vision_feature_select_strategy="default"
        ).pooler_output
        plain = model(input_ids=ids, pixel_values=pixels).logits[0, -1]
        with anchors(model, torch.log1p(9.5 * score), 1 + 2.5 * score):
            anchored = model(input_ids=ids, pixel_values=pixels).logits[0, -1]
    assert float((tokens[1:] - tokens[:-1]).norm(dim=-1).min()) > 0.1 * float(tokens.norm(dim=-1).mean())
    assert float(plain.std()) > 1.0  # far from uniform
    assert float((anchored - plain).abs().max()) > 0.5
