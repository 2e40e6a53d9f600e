"""The streamed reference against the whole model: the same bits, in the memory of one module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from refusals import refused

from va_export.anchor import attention
from va_export.checkpoint.files import Checkpoint
from va_export.export.recipe import Recipe
from va_export.export.source import Source
from va_export.models import FAMILIES, family_for, published_config
from va_export.models import reference_memory as memory
from va_export.models.family import Choices, ModelFamily
from va_export.models.internvl2.tiny import write_tiny_checkpoint
from va_export.models.streaming import StreamedModel
from va_export.proof.reference import compute_reference
from va_export.proof.sample import Sample
from va_export.runtime.tokenizer import load_tokenizer
from va_export.settings import ScoreSettings

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "internlm2": ({}, {}),
    "qwen2": ({"architectures": ["Qwen2ForCausalLM"], "rope_scaling": None, "num_hidden_layers": 3}, {}),
    "llama-6b-vision": (
        {"architectures": ["LlamaForCausalLM"], "num_key_value_heads": 1},
        {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False},
    ),
    # The prompt is longer than this: the rotary base is stretched, and differently at every step.
    "stretched-rotary": ({"max_position_embeddings": 16}, {}),
}


def sample_of(source: Source) -> Sample:
    generator = np.random.default_rng(0)
    ids = np.concatenate([[256, 1, 2], np.full(32, source.spec.image_token_id), [3, 4, 5]])[None]
    pixels = generator.normal(size=(2, 3, 112, 112)).astype(np.float32)
    prepared = source.processing.prepare_ids(ids, {"pixel_values": pixels}, 2)
    return Sample(frames=np.zeros((2, 112, 112, 3), np.uint8), prepared=prepared, clip={})


def reference(directory: Path, *, streamed: bool | None, layers: int | None = None, **rest: Any) -> dict[str, Any]:
    checkpoint = Checkpoint.open(directory)
    family = family_for(checkpoint.config)
    source = Source(family, family.spec_from_checkpoint(checkpoint, Choices(layers)), checkpoint)
    recipe = Recipe(name="r", checkpoint=str(directory), score=ScoreSettings(n_subspaces=2))
    return compute_reference(source, recipe, sample_of(source), 4, streamed=streamed, **rest)


@pytest.mark.parametrize("variant", VARIANTS)
def test_streamed_and_whole_give_the_same_bits(variant: str, tmp_path: Path) -> None:
    """The same modules compute on the same numbers in the same order: nothing may differ, not by a rounding."""
    llm, vision = VARIANTS[variant]
    directory = write_tiny_checkpoint(tmp_path, llm_config=llm, vision_config=vision)
    whole, streamed = (reference(directory, streamed=how) for how in (False, True))
    assert whole.keys() == streamed.keys()
    for name, array in whole.items():
        assert array.dtype == streamed[name].dtype and np.array_equal(array, streamed[name]), name
    assert not np.array_equal(whole["anchored_logits"], whole["plain_logits"])
    assert whole["plain_logits"].shape == (4, 263) and np.isfinite(whole["plain_logits"]).all()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_is_streamed(family: ModelFamily, tmp_path: Path) -> None:
    """Several axes of positions, features that layers add: in the prompt and in the steps behind it."""
    checkpoint = Checkpoint.open(family.write_tiny_checkpoint(tmp_path))
    source = Source(family, family.spec_from_checkpoint(checkpoint), checkpoint)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    frames = np.random.default_rng(0).integers(0, 256, (2, 56, 84, 3), dtype=np.uint8)
    sample = Sample(frames, source.processing.prepare(frames, "Why?", tokenizer), clip={})
    recipe = Recipe(name="r", checkpoint=str(tmp_path), score=ScoreSettings(n_subspaces=2))
    whole, streamed = (compute_reference(source, recipe, sample, 3, streamed=how) for how in (False, True))
    assert whole.keys() == streamed.keys()
    assert all(np.array_equal(array, streamed[name]) for name, array in whole.items())


def test_a_cut_decoder_is_streamed_too(tmp_path: Path) -> None:
    directory = write_tiny_checkpoint(tmp_path)
    whole, streamed = (reference(directory, streamed=how, layers=1) for how in (False, True))
    assert np.array_equal(whole["anchored_logits"], streamed["anchored_logits"])


def test_progress_ends_at_its_end(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    reference(write_tiny_checkpoint(tmp_path), streamed=True, on_step=lambda *step: steps.append(step))
    assert steps == [(done, 8) for done in range(1, 9)]  # two layers, four tokens


def test_no_more_than_one_module_is_ever_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted where weights come and go; the largest set is what the estimate says."""
    directory = write_tiny_checkpoint(tmp_path, llm_config={"num_hidden_layers": 4})
    checkpoint = Checkpoint.open(directory)
    family = family_for(checkpoint.config)
    spec = family.spec_from_checkpoint(checkpoint)
    held: list[int] = []
    load = StreamedModel._load

    def counted(self: StreamedModel, names: list[str]) -> None:
        load(self, names)
        held.append(sum(p.numel() for p in self.model.parameters() if not p.is_meta))

    monkeypatch.setattr(StreamedModel, "_load", counted)
    reference(directory, streamed=True)
    weights = family.weight_map(spec)
    largest = memory._largest_module(weights)
    # A vision layer's own scales stay while its matrices come and go.
    assert largest <= max(held) <= largest + 2 * spec.vision.hidden_size + spec.text.hidden_size
    assert len(held) > 4 * 4


def test_weights_leave_when_a_forward_fails(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_tiny_checkpoint(tmp_path))
    family = family_for(checkpoint.config)
    spec = family.spec_from_checkpoint(checkpoint)
    with torch.device("meta"):
        model: Any = family.build_model(spec)
    stream = StreamedModel(model, family.weight_map(spec), checkpoint)
    with pytest.raises(RuntimeError), stream.streamed(model.lm_head):
        model.lm_head(torch.zeros(1, 3))  # of the wrong width
    with pytest.raises(ZeroDivisionError), stream.resident(model.model.language_model.layers[0]):
        raise ZeroDivisionError
    assert all(parameter.is_meta for parameter in model.parameters())
    with pytest.raises(RuntimeError, match="weight map and model differ"):
        StreamedModel(model, dict(list(family.weight_map(spec).items())[1:]), checkpoint)


def test_a_damaged_tensor_is_found_when_it_is_read(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    directory = write_tiny_checkpoint(tmp_path)
    weights = load_file(directory / "model.safetensors")
    weights["language_model.model.layers.1.feed_forward.w2.weight"][0, 0] = float("nan")
    save_file(weights, directory / "model.safetensors")
    with refused(directory / "model.safetensors", "language_model.model.layers.1.feed_forward.w2.weight", 1):
        reference(directory, streamed=True)


@pytest.mark.parametrize(("free", "expected"), [(64e9, False), (24e9, True), (8e9, True)])
def test_the_8b_model_streams_on_24_gigabytes(free: float, expected: bool) -> None:
    config = published_config("OpenGVLab/InternVL2-8B")
    assert config is not None
    family = family_for(config)
    spec = family.spec_from_config(config)
    sizes = memory.reference_memory(spec, family.weight_map(spec), 2300, 8, 8)
    assert sizes.must_stream(int(free)) is expected
    assert 4 * 8.07e9 < sizes.whole < 4 * 8.07e9 + 4e9
    assert sizes.streamed < 6e9  # the output matrix 1.5 GB, two caches 1.2 GB, one layer's activations


def test_the_choice_is_made_from_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from va_export.proof import streamed_reference

    made: list[str] = []
    original = streamed_reference.StreamedReference.__init__

    def noted(self: Any, *arguments: Any) -> None:
        made.append("streamed")
        original(self, *arguments)

    monkeypatch.setattr(streamed_reference.StreamedReference, "__init__", noted)
    directory = write_tiny_checkpoint(tmp_path)
    plenty = reference(directory, streamed=None)
    assert not made
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1 << 20}))
    scarce = reference(directory, streamed=None)
    assert made == ["streamed"]
    assert np.array_equal(plenty["anchored_logits"], scarce["anchored_logits"])


def test_attention_head_by_head_is_the_same_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """What bounds the memory of long prompts must not change their numbers."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 6, 33, 16, generator=generator)
    key, value = (torch.randn(2, 3, 40, 16, generator=generator) for _ in range(2))
    gains = torch.rand(2, 40, generator=generator)
    whole = attention.anchored_attention(query, key, value, gains, 1 + gains)
    dense = torch.rand(2, 6, 33, 40, generator=generator) > 0.5
    whole_dense = attention.attend_where_visible(query, key, value, gains, None, dense)
    monkeypatch.setattr(attention, "_MOST_LOGITS", 1)
    # The products are the same batched matrices, cut along the batch: float32 rounding at the most.
    split = attention.anchored_attention(query, key, value, gains, 1 + gains)
    torch.testing.assert_close(split, whole, rtol=0, atol=4 * torch.finfo(torch.float32).eps * float(whole.abs().max()))
    split = attention.attend_where_visible(query, key, value, gains, None, dense)
    torch.testing.assert_close(split, whole_dense, rtol=0, atol=1e-6 * float(whole_dense.abs().max()))
