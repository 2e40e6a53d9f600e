"""The reference: Hugging Face's classes in float32, held against the official run; and its file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refused

from va_export.checkpoint.files import Checkpoint
from va_export.export.recipe import Recipe
from va_export.export.source import Source
from va_export.models import family_named
from va_export.models.family import Choices
from va_export.proof.reference import (
    FILE_NAME,
    compute_reference,
    prepared_of,
    read_reference,
    write_reference,
)
from va_export.proof.sample import Sample
from va_export.settings import ScoreSettings

Arrays = Mapping[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def reference(golden: Arrays, golden_checkpoint: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The reference of the official run's own frames and prompt."""
    family = family_named("internvl2")
    checkpoint = Checkpoint.open(golden_checkpoint)
    spec = family.spec_from_checkpoint(checkpoint, Choices(image_token_id=int(golden["image_token_id"])))
    source = Source(family, spec, checkpoint)
    prepared = source.processing.prepare_ids(golden["input_ids"], {"pixel_values": golden["pixel_values"]}, 8)
    sample = Sample(frames=np.zeros((8, 112, 112, 3), np.uint8), prepared=prepared, clip={})
    recipe = Recipe(name="golden", checkpoint=str(golden_checkpoint), score=ScoreSettings(n_subspaces=8))
    steps: list[tuple[int, int]] = []
    arrays = compute_reference(source, recipe, sample, 3, lambda *step: steps.append(step))
    assert steps == sorted(steps) and steps[-1][0] == steps[-1][1]  # progress ends at its end
    return arrays


def test_visual_tokens_and_score_are_the_official_ones(reference: Arrays, golden: Arrays) -> None:
    np.testing.assert_allclose(reference["visual_tokens"], golden["visual_tokens"], atol=1e-4)
    np.testing.assert_allclose(reference["sharing_score"], golden["sharing_score"], atol=2e-3)


def test_plain_logits_are_the_official_ones(reference: Arrays, golden: Arrays) -> None:
    np.testing.assert_allclose(reference["plain_logits"][:1], golden["plain_last_logits"], atol=1e-4)


def test_gains_follow_from_the_score(reference: Arrays, golden: Arrays) -> None:
    visual = golden["input_ids"][0] == golden["image_token_id"]
    expected = np.ones(visual.size)
    expected[visual] = 1 + 9.5 * reference["sharing_score"].astype(np.float64)
    np.testing.assert_allclose(np.exp(reference["key_log_gain"].astype(np.float64)), expected, rtol=1e-6)
    expected[visual] = 1 + 2.5 * reference["sharing_score"].astype(np.float64)
    np.testing.assert_allclose(reference["value_gain"], expected, rtol=1e-6)
    np.testing.assert_allclose(reference["value_gain"], golden["gain_v"], rtol=2**-7)  # the original's are bfloat16


def test_anchored_logits_are_near_the_official_ones(reference: Arrays, golden: Arrays) -> None:
    """The original rounds its gains to bfloat16, so this is near and not equal; equal gains are tested on bundles."""
    ours, theirs = reference["anchored_logits"][0], golden["decode_logits"][0]
    assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) > 0.9999
    assert reference["anchored_tokens"].tolist() == golden["tokens"][:3].tolist()
    assert np.abs(reference["anchored_logits"][0] - reference["plain_logits"][0]).max() > 0.1


def test_tokens_are_the_argmax_of_their_row(reference: Arrays) -> None:
    for side in ("anchored", "plain"):
        assert reference[f"{side}_logits"].shape == (3, 1000)
        assert reference[f"{side}_logits"].argmax(-1).tolist() == reference[f"{side}_tokens"].tolist()


def test_file_and_back(reference: dict[str, np.ndarray[Any, Any]], tmp_path: Path) -> None:
    write_reference(tmp_path / FILE_NAME, reference)
    again = read_reference(tmp_path)
    assert set(again) == set(reference)
    for name, array in reference.items():
        assert again[name].dtype == array.dtype
        np.testing.assert_array_equal(again[name], array)
    prepared = prepared_of(again)
    assert prepared.grid == (8, 4, 4) and prepared.next_position == prepared.length
    assert set(prepared.vision_inputs) == {"pixel_values"}


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 truncated"])
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with refused(tmp_path / FILE_NAME):
        read_reference(tmp_path)


def test_a_damaged_member_is_refused(tmp_path: Path) -> None:
    write_reference(tmp_path / FILE_NAME, {"a": np.arange(1000)})
    content = bytearray((tmp_path / FILE_NAME).read_bytes())
    content[len(content) // 3] ^= 0xFF
    (tmp_path / FILE_NAME).write_bytes(bytes(content))
    with refused(tmp_path / FILE_NAME):
        read_reference(tmp_path)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / FILE_NAME, a=np.array([object()], dtype=object))
    with refused(tmp_path / FILE_NAME):
        read_reference(tmp_path)


def test_no_file(tmp_path: Path) -> None:
    with refused(tmp_path / FILE_NAME):
        read_reference(tmp_path)
