"""transformers' own layout: what its class saves is read and computes the same; its prompt; what is refused by name."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, InternVLConfig, InternVLForConditionalGeneration
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers_layout import LAYOUTS, rewritten_config, write_in_transformers_layout

from va_export.checkpoint.files import Checkpoint
from va_export.errors import VaExportError
from va_export.models import family_for, family_named
from va_export.models.family import Choices, DynamicNtkScaling, ModelSpec
from va_export.models.internvl2 import chat_template
from va_export.models.internvl2.config import spec_from_config
from va_export.models.internvl2.tiny import write_tiny_checkpoint
from va_export.models.parameters import check_checkpoint, load_model
from va_export.runtime.processing import Processing
from va_export.runtime.tokenizer import load_tokenizer

IMAGE = 90
TEXT: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
QWEN2 = {**TEXT, "model_type": "qwen2", "rope_parameters": {"rope_theta": 1e6, "rope_type": "dynamic", "factor": 2.0}}
QWEN3 = {**TEXT, "model_type": "qwen3", "head_dim": 16, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "image_size": [56, 56],
    "patch_size": [14, 14],
    "attention_bias": True,
}
# The large tower; its eps is not the class's 1e-6, which its norms of queries and keys keep.
LARGE = {**TOWER, "attention_bias": False, "norm_type": "rms_norm", "use_qk_norm": True, "layer_norm_eps": 1e-3}


def saved(directory: Path, text: dict[str, Any], tower: dict[str, Any] = TOWER, **changed: Any) -> Any:
    """A random model of transformers' class, which `directory` then holds as `save_pretrained` writes it."""
    changed = {"image_token_id": IMAGE, "image_seq_length": 4, **changed}
    model = InternVLForConditionalGeneration(
        InternVLConfig(text_config=dict(text), vision_config=dict(tower), **changed)
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            one = name.endswith("norm.weight") or "layernorm" in name or "lambda" in name
            spread = 0.2 if parameter.ndim == 1 else 1.5 / math.sqrt(parameter[0].numel())
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread + float(one))
    model.save_pretrained(directory)
    return model


def read(directory: Path) -> tuple[ModelSpec, Any]:
    checkpoint = Checkpoint.open(directory)
    family = family_for(checkpoint.config)
    spec = family.spec_from_checkpoint(checkpoint)
    check_checkpoint(family, spec, checkpoint)
    return spec, load_model(family, spec, checkpoint)


def logits_of(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(3, 3, 56, 56, generator=generator)
    ids = torch.tensor([[1, 5, 6, *[IMAGE] * 12, 7, 8, 9, 10, 11]])
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, pixel_values=pixels).logits
    return logits


def equal(model: Any, expected: torch.Tensor) -> None:
    assert float(expected.std()) > 0.5
    # float32: two layers of sums over at most 200 terms, taken in another order by another attention kernel
    torch.testing.assert_close(logits_of(model), expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("tower", [TOWER, LARGE], ids=["300M", "6B"])
@pytest.mark.parametrize("text", [QWEN2, QWEN3], ids=["qwen2", "qwen3"])
def test_what_transformers_saves_computes_the_same(
    text: dict[str, Any], tower: dict[str, Any], tie: bool, tmp_path: Path
) -> None:
    theirs = saved(tmp_path, text, tower, tie_word_embeddings=tie)
    expected = logits_of(theirs)
    spec, model = read(tmp_path)
    equal(model, expected)
    assert spec.image_token_id == IMAGE and spec.eos_token_ids == (2,)
    assert spec.text.rope_scaling == (DynamicNtkScaling(2.0) if text is QWEN2 else None)
    weights = load_file(tmp_path / "model.safetensors")
    assert "vision_tower.embeddings.cls_token" in weights and ("language_model.lm_head.weight" in weights) is not tie
    of_the_class = {name: tensor for name, tensor in theirs.state_dict().items() if not (tie and "lm_head" in name)}
    save_file(of_the_class, tmp_path / "model.safetensors")
    assert "model.vision_tower.embeddings.cls_token" in of_the_class
    equal(read(tmp_path)[1], expected)


def test_both_matrices_are_kept_where_the_file_has_both(tmp_path: Path) -> None:
    """Older -hf files say nothing of tying, which the class takes for yes, and hold two matrices that differ. It keeps
    both then."""
    expected = logits_of(saved(tmp_path, QWEN2, tie_word_embeddings=False))
    content = json.loads((tmp_path / "config.json").read_text())
    assert content.pop("tie_word_embeddings") is False
    (tmp_path / "config.json").write_text(json.dumps(content))
    with torch.no_grad():
        theirs = InternVLForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(logits_of(theirs.eval()), expected, rtol=0, atol=0)
    equal(read(tmp_path)[1], expected)


@pytest.fixture(params=LAYOUTS)
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The tiny checkpoint, in either kind of names."""
    decoder = {"architectures": ["Qwen2ForCausalLM"], "rope_scaling": None}
    original = write_tiny_checkpoint(tmp_path / "original", llm_config=decoder)
    return write_in_transformers_layout(original, tmp_path / "native", str(request.param), 262)


def processing_of(directory: Path) -> tuple[Processing, list[str]]:
    checkpoint = Checkpoint.open(directory)
    family = family_for(checkpoint.config)
    return family.processing(family.spec_from_checkpoint(checkpoint), checkpoint), checkpoint.notes


def test_every_parameter_has_its_tensor_and_every_tensor_a_use(directory: Path) -> None:
    checkpoint = Checkpoint.open(directory)
    family = family_for(checkpoint.config)
    spec = family.spec_from_checkpoint(checkpoint)
    check_checkpoint(family, spec, checkpoint)
    with torch.device("meta"):
        parameters = dict(family.build_model(spec).named_parameters())
    weights = family.weight_map(spec)
    assert {key: source.shape for key, source in weights.items()} == {
        key: tuple(parameter.shape) for key, parameter in parameters.items()
    }
    assert sorted(source.checkpoint_name for source in weights.values()) == sorted(checkpoint.names())


def test_the_prompt_is_transformers_own(directory: Path) -> None:
    """No system message; frames as its processor writes them; the template puts a line break behind the video."""
    processing, notes = processing_of(directory)
    own: Any = SimpleNamespace(
        start_image_token="<img>", end_image_token="</img>", image_token="<IMG_CONTEXT>", image_seq_length=16
    )
    frames = InternVLProcessor.replace_video_token(own, {"pixel_values_videos": [np.zeros((3, 3, 112, 112))]}, 0)
    assert processing.prompt_text("What happens?", 3) == (
        f"<|im_start|>user\n{frames}\nWhat happens?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert frames.startswith("Frame1: <img><IMG_CONTEXT>") and notes == []
    assert (processing.image_token_id, processing.stop_token_ids) == (262, (257, 259))  # </s> and <|im_end|>


def test_generation_settings_add_to_the_stops(directory: Path) -> None:
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [258]}))
    assert processing_of(directory)[0].stop_token_ids == (257, 258, 259)


def test_another_chat_template_is_told_and_not_executed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = processing_of(directory)[0]
    text = "{% for message in messages %}{{ 1 / 0 }}\n{% endfor %}"
    files = {
        "chat_template.jinja": text,
        "chat_template.json": json.dumps({"chat_template": text}),
        "tokenizer_config.json": json.dumps(
            {**json.loads((directory / "tokenizer_config.json").read_text()), "chat_template": [{"name": "a"}]}
        ),
    }
    for name, content in files.items():
        (directory / name).write_text(content)
    found, notes = processing_of(directory)
    assert found == expected and len(notes) == 3
    assert all(any(name in note for note in notes) for name in files)
    monkeypatch.setattr(chat_template, "_PUBLISHED", (hashlib.sha256(text.encode()).hexdigest(),))
    assert len(processing_of(directory)[1]) == 1
    (directory / "chat_template.jinja").write_bytes(b"\xff")
    with refused(directory / "chat_template.jinja"):
        processing_of(directory)


def test_a_token_that_the_model_has_no_row_for_is_left_out(directory: Path) -> None:
    """The processor's `<video>`, which it replaces by frames: a question that spells it stays within the vocabulary."""
    expected = processing_of(directory)[0]
    entry = {"content": "<video>", "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    content = json.loads((directory / "tokenizer.json").read_text())
    content["added_tokens"].append({"id": 263, "special": True, **entry})
    (directory / "tokenizer.json").write_text(json.dumps(content))
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"]["263"] = {"special": True, **entry}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    assert AutoTokenizer.from_pretrained(directory).convert_tokens_to_ids("<video>") == 263
    found, notes = processing_of(directory)
    assert found == expected and len(notes) == 1 and "<video>" in notes[0]
    checkpoint = Checkpoint.open(directory)
    written = family_for(checkpoint.config).write_tokenizer(checkpoint, directory.parent)
    assert written is not None
    tokenizer = load_tokenizer(written.parent)
    assert tokenizer is not None and tokenizer.vocab_size == 263
    assert tokenizer.encode("<video><img>") == [*b"<video>", 260]


def test_an_id_that_the_tokenizer_contradicts_is_refused(directory: Path) -> None:
    content = json.loads((directory / "config.json").read_text())
    key = next(key for key in ("image_token_id", "image_token_index") if key in content)
    (directory / "config.json").write_text(json.dumps({**content, key: 100}))
    with refused("config.json: image_token_id", 100, 262):
        processing_of(directory)


def test_missing_weights_are_named(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    name = next(name for name in weights if name.endswith("layer.1.attention.k_proj.weight"))
    del weights[name]
    save_file(weights, directory / "model.safetensors")
    with refused(directory, 1, name):
        read(directory)


def config(layout: str = "saved") -> dict[str, Any]:
    original = json.loads((Path(__file__).parents[2] / "data/golden/internvl3_tiny/config.json").read_text())
    return rewritten_config(original, layout, 700)


def edited(path: str, value: Any) -> dict[str, Any]:
    content = copy.deepcopy(config())
    *sections, key = path.split(".")
    section = content
    for name in sections:
        section = section[name]
    if value is ...:
        del section[key]
    else:
        section[key] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("text_config", ..., ""),
        ("vision_config", ..., ""),
        ("text_config.hidden_size", ..., "text_config"),
        ("text_config.rope_theta", ..., "text_config.rope_theta"),
        ("text_config.hidden_act", "gelu", "text_config.hidden_act"),
        ("text_config.num_key_value_heads", 2, "text_config.num_attention_heads"),
        ("text_config.rope_scaling", {"rope_type": "yarn", "factor": 2.0}, "text_config.rope_scaling"),
        ("text_config.rope_scaling", {"rope_type": "dynamic"}, "text_config.rope_scaling.factor"),
        ("text_config.use_sliding_window", True, "text_config.use_sliding_window"),
        ("text_config.eos_token_id", 704, "text_config.eos_token_id"),
        ("text_config.model_type", "qwen3_moe", "text_config.model_type"),
        ("text_config.model_type", "gpt_oss", "text_config.model_type"),
        ("text_config.model_type", "internlm3", "text_config.model_type"),
        ("text_config.model_type", "gemma", "text_config.model_type"),
        ("text_config.model_type", 3, "text_config.model_type"),
        ("text_config.architectures", ["InternLM3ForCausalLM"], "text_config.architectures"),
        ("vision_config.hidden_size", ..., "vision_config"),
        ("vision_config.image_size", [112, 56], "vision_config.image_size"),
        ("vision_config.image_size", [112], "vision_config.image_size"),
        ("vision_config.patch_size", [15, 15], "vision_config"),
        ("vision_config.hidden_act", "relu", "vision_config.hidden_act"),
        ("vision_config.use_mean_pooling", False, "vision_config.use_mean_pooling"),
        ("vision_config.use_mask_token", True, "vision_config.use_mask_token"),
        ("vision_config.use_absolute_position_embeddings", False, "vision_config.use_absolute_position_embeddings"),
        ("image_seq_length", 64, "image_seq_length"),
        ("downsample_ratio", 0.25, "image_seq_length"),
        ("downsample_ratio", 0.3, "vision_config"),
        ("projector_hidden_act", "relu", "projector_hidden_act"),
        ("vision_feature_layer", -2, "vision_feature_layer"),
        ("vision_feature_layer", [-1], "vision_feature_layer"),
        ("vision_feature_select_strategy", "full", "vision_feature_select_strategy"),
        ("image_token_id", 3, "image_token_id"),
        ("image_token_index", "700", "image_token_index"),
        ("flash_relative_threshold", 0.3, "flash_relative_threshold"),
    ],
)
def test_refuses_by_name(path: str, value: Any, named: str) -> None:
    with pytest.raises(VaExportError) as caught:
        family_for(config()).spec_from_config(edited(path, value))
    where = str(caught.value.where)
    assert where == (f"config.json: {named}" if named else "config.json")
    assert caught.value.fix


def test_mixtures_of_experts_and_flash_models_are_called_so() -> None:
    family = family_named("internvl2")
    for model_type, name in (("qwen3_moe", "Qwen3MoeForCausalLM"), ("gpt_oss", "GptOssForCausalLM")):
        with refused("config.json: text_config.model_type", name, "experts"):
            family.spec_from_config(edited("text_config.model_type", model_type))
    with refused("config.json: flash_mode", "Flash"):
        family.spec_from_config(edited("flash_mode", True))
    with refused("gating.mlp.weight", "Flash"):
        spec_from_config(config(), names=["model.vision_tower.embeddings.cls_token", "gating.mlp.weight"])


def test_an_id_outside_of_the_vocabulary_is_refused() -> None:
    with refused("image_token_id", 704):
        family_for(config()).spec_from_config(edited("image_token_index", 704))
    with refused("config.json: image_token_id", 700, 5):
        family_for(config()).spec_from_config(config(), Choices(image_token_id=5))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_square_may_be_one_number(layout: str) -> None:
    content = config(layout)
    expected = family_for(content).spec_from_config(content)
    content["vision_config"] |= {"image_size": 112, "patch_size": 14}
    assert family_for(content).spec_from_config(content) == expected
