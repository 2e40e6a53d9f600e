"""InternVL2's weight map covers the model and the checkpoint, once each; wrong checkpoints are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from va_export.checkpoint.files import Checkpoint
from va_export.errors import VaExportError
from va_export.models import family_for, family_named
from va_export.models.family import Choices, ModelFamily, ModelSpec
from va_export.models.internvl2.tiles import tiles
from va_export.models.parameters import check_checkpoint, load_model

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "published": {},
    "6b-vision-tower": {
        "vision_config": {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False, "layer_norm_eps": 1e-3}
    },
    "decoder-biases": {"llm_config": {"bias": True}},
    "no-grouping": {"llm_config": {"num_key_value_heads": 4}},
    "one-kv-head": {"llm_config": {"num_key_value_heads": 1}},
    "qwen2": {"llm_config": {"architectures": ["Qwen2ForCausalLM"], "rope_scaling": None}},
    "llama": {"llm_config": {"architectures": ["LlamaForCausalLM"], "rope_scaling": None}},
    "llama-biases": {"llm_config": {"architectures": ["LlamaForCausalLM"], "attention_bias": True}},
    "llama-wide-heads": {"llm_config": {"architectures": ["LlamaForCausalLM"], "head_dim": 48}},
}


@pytest.fixture(scope="module")
def family() -> ModelFamily:
    return family_named("internvl2")


@pytest.fixture
def directory(tmp_path: Path, family: ModelFamily) -> Path:
    return family.write_tiny_checkpoint(tmp_path / "tiny")


def variant_spec(family: ModelFamily, directory: Path, name: str, layers: int | None = None) -> ModelSpec:
    """The spec of a variant, whose configuration replaces the one in `directory`."""
    config = json.loads((directory / "config.json").read_text())
    for section, values in VARIANTS[name].items():
        config[section] |= values
    (directory / "config.json").write_text(json.dumps(config))
    return family.spec_from_checkpoint(Checkpoint.open(directory), Choices(layers))


def write_variant_weights(family: ModelFamily, spec: ModelSpec, directory: Path) -> dict[str, torch.Tensor]:
    """Random weights for a variant, in the checkpoint's own names."""
    generator = torch.Generator().manual_seed(0)
    sources = {source.checkpoint_name: source for source in family.weight_map(spec).values()}
    weights = {
        name: torch.randn(source.checkpoint_shape, generator=generator) * 0.2 for name, source in sources.items()
    }
    save_file(weights, directory / "model.safetensors")
    return weights


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("layers", [None, 1])
def test_map_names_every_parameter_with_its_shape(
    name: str, layers: int | None, family: ModelFamily, directory: Path
) -> None:
    spec = variant_spec(family, directory, name, layers)
    with torch.device("meta"):
        model = family.build_model(spec)
    assert {key: source.shape for key, source in family.weight_map(spec).items()} == {
        key: tuple(parameter.shape) for key, parameter in model.named_parameters()
    }
    assert not list(model.buffers())
    assert set(model.state_dict()) == set(family.weight_map(spec))  # nothing is tied


@pytest.mark.parametrize("name", VARIANTS)
def test_map_uses_every_row_of_the_checkpoint_once(name: str, family: ModelFamily, directory: Path) -> None:
    spec = variant_spec(family, directory, name)
    rows: dict[str, list[torch.Tensor]] = {}
    shapes = {}
    for source in family.weight_map(spec).values():
        numbered = torch.arange(source.checkpoint_shape[0]).reshape(-1, *[1] * (len(source.checkpoint_shape) - 1))
        numbered = numbered.expand(source.checkpoint_shape)
        taken = source.view(numbered)
        rows.setdefault(source.checkpoint_name, []).append(taken.reshape(len(taken), -1)[:, 0])
        shapes[source.checkpoint_name] = source.checkpoint_shape
    for checkpoint_name, parts in rows.items():
        assert torch.equal(torch.cat(parts).sort().values, torch.arange(shapes[checkpoint_name][0])), checkpoint_name


def test_builds_without_storage_under_fake_tensors(family: ModelFamily, directory: Path) -> None:
    spec = family.spec_from_checkpoint(Checkpoint.open(directory))
    with FakeTensorMode():
        model = family.build_model(spec, attention="sdpa")
    assert all(isinstance(parameter, FakeTensor) for parameter in model.parameters())


def original_vision_tower(
    weights: dict[str, torch.Tensor], config: dict[str, Any], pixels: torch.Tensor
) -> torch.Tensor:
    """InternViT, pixel shuffle and projector written out from the original's definition, in float64.

    For the variant with RMS norms, normalised queries and keys, and no bias in `qkv`.
    """
    w = {name: tensor.double() for name, tensor in weights.items()}
    heads, eps = config["num_attention_heads"], config["layer_norm_eps"]

    def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()

    x = torch.nn.functional.conv2d(
        pixels.double(),
        w["vision_model.embeddings.patch_embedding.weight"],
        w["vision_model.embeddings.patch_embedding.bias"],
        stride=config["patch_size"],
    )
    x = x.flatten(2).transpose(1, 2)
    cls = w["vision_model.embeddings.class_embedding"].expand(len(x), -1, -1)
    x = torch.cat([cls, x], dim=1) + w["vision_model.embeddings.position_embedding"]
    batch, length, hidden = x.shape
    for layer in range(config["num_hidden_layers"]):
        p = f"vision_model.encoder.layers.{layer}."
        q, k, v = (rms(x, w[p + "norm1.weight"]) @ w[p + "attn.qkv.weight"].T).split(hidden, dim=-1)
        q, k = rms(q, w[p + "attn.q_norm.weight"]), rms(k, w[p + "attn.k_norm.weight"])
        q, k, v = (part.reshape(batch, length, heads, -1).transpose(1, 2) for part in (q, k, v))
        attention = (q @ k.transpose(-1, -2) / (hidden // heads) ** 0.5).softmax(-1) @ v
        attention = attention.transpose(1, 2).reshape(batch, length, hidden)
        x = x + w[p + "ls1"] * (attention @ w[p + "attn.proj.weight"].T + w[p + "attn.proj.bias"])
        mlp = rms(x, w[p + "norm2.weight"]) @ w[p + "mlp.fc1.weight"].T + w[p + "mlp.fc1.bias"]
        mlp = torch.nn.functional.gelu(mlp) @ w[p + "mlp.fc2.weight"].T + w[p + "mlp.fc2.bias"]
        x = x + w[p + "ls2"] * mlp
    side = round((length - 1) ** 0.5)
    grid = x[:, 1:].reshape(batch, side // 2, 2, side // 2, 2, hidden)  # row, row in block, column, column in block
    tokens = grid.permute(0, 1, 3, 2, 4, 5).reshape(batch, (side // 2) ** 2, 4 * hidden)
    tokens = torch.nn.functional.layer_norm(tokens, (4 * hidden,), w["mlp1.0.weight"], w["mlp1.0.bias"], 1e-5)
    tokens = torch.nn.functional.gelu(tokens @ w["mlp1.1.weight"].T + w["mlp1.1.bias"])
    return tokens @ w["mlp1.3.weight"].T + w["mlp1.3.bias"]


def test_rms_and_query_key_norms_compute_what_the_original_does(family: ModelFamily, directory: Path) -> None:
    spec = variant_spec(family, directory, "6b-vision-tower")
    weights = write_variant_weights(family, spec, directory)
    checkpoint = Checkpoint.open(directory)
    pixels = torch.randn(
        2, 3, tiles(spec).image_size, tiles(spec).image_size, generator=torch.Generator().manual_seed(1)
    )
    model = load_model(family, spec, checkpoint, dtype=torch.float64)
    with torch.no_grad():
        features = model.get_image_features(
            pixels, vision_feature_layer=-1, vision_feature_select_strategy="default"
        ).pooler_output
    truth = original_vision_tower(weights, checkpoint.config["vision_config"], pixels)
    # Hugging Face's RMS norm computes in float32 even in a float64 model.
    torch.testing.assert_close(features, truth, rtol=0, atol=3e-6 * float(truth.abs().max()))


def test_cut_model_equals_the_whole_up_to_its_layer(family: ModelFamily, directory: Path) -> None:
    checkpoint = Checkpoint.open(directory)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        whole = load_model(family, family.spec_from_checkpoint(checkpoint), checkpoint)
        cut = load_model(family, family.spec_from_checkpoint(checkpoint, Choices(1)), checkpoint)
        hidden = whole.model.language_model(ids, output_hidden_states=True).hidden_states[1]
        after_cut = cut.model.language_model(ids).last_hidden_state
        normed = whole.model.language_model.norm(hidden)
    torch.testing.assert_close(after_cut, normed)


Weights = dict[str, torch.Tensor]


def drop(name: str) -> Callable[[Weights], None]:
    return lambda weights: weights.__delitem__(name)


def put(name: str, value: torch.Tensor) -> Callable[[Weights], None]:
    return lambda weights: weights.__setitem__(name, value)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (drop("mlp1.3.bias"), [1, "mlp1.3.bias"]),
        (
            drop("language_model.model.layers.1.attention.wo.weight"),
            [1, "language_model.model.layers.1.attention.wo.weight"],
        ),
        (put("extra.lora_A", torch.ones(1)), [1, "extra.lora_A"]),
        (
            put("language_model.output.weight", torch.ones(262, 128)),
            ["language_model.output.weight", [262, 128], [263, 128]],
        ),
        (put("mlp1.0.bias", torch.ones(256, dtype=torch.int8)), ["mlp1.0.bias", "int8"]),
        (put("mlp1.0.bias", torch.ones(256, dtype=torch.float64)), ["mlp1.0.bias", "float64"]),
    ],
)
def test_wrong_weights_are_named(
    damage: Callable[[Weights], None], named: list[object], family: ModelFamily, directory: Path
) -> None:
    weights = load_file(directory / "model.safetensors")
    damage(weights)
    save_file(weights, directory / "model.safetensors")
    checkpoint = Checkpoint.open(directory)
    spec = family.spec_from_checkpoint(checkpoint)
    with refused(directory, *named):
        check_checkpoint(family, spec, checkpoint)


LAYER = "language_model.model.layers.0."


def replaced(**parts: torch.Tensor) -> Callable[[Weights], None]:
    """A layer's matrix, stored in other parts."""

    def damage(weights: Weights) -> None:
        matrix = weights.pop(f"{LAYER}attention.wo.weight")
        weights.update({f"{LAYER}attention.wo.{name.replace('__', '.')}": part for name, part in parts.items()})
        assert matrix.shape == (128, 128)

    return damage


@pytest.mark.parametrize(
    ("method", "damage"),
    [
        ("AWQ", replaced(qweight=torch.ones(128, 16, dtype=torch.int32), scales=torch.ones(1, 128))),
        ("GPTQ", replaced(qweight=torch.ones(16, 128, dtype=torch.int32), g_idx=torch.ones(128, dtype=torch.int32))),
        ("FP8", replaced(weight=torch.ones(128, 128).to(torch.float8_e4m3fn), weight_scale=torch.ones(1))),
        ("float8_e4m3fn", replaced(weight=torch.ones(128, 128).to(torch.float8_e4m3fn))),
        (
            "bitsandbytes",
            replaced(
                weight=torch.ones(8192, 1, dtype=torch.uint8),
                weight__absmax=torch.ones(256),
                weight__quant_state__bitsandbytes__nf4=torch.ones(9, dtype=torch.uint8),
            ),
        ),
        ("MLX", replaced(weight=torch.ones(128, 16, dtype=torch.uint32), scales=torch.ones(2), biases=torch.ones(2))),
        ("LoRA", replaced(base_layer__weight=torch.ones(128, 128), lora_A__default__weight=torch.ones(4, 128))),
    ],
)
def test_quantised_weights_and_adapters_are_called_so(
    method: str, damage: Callable[[Weights], None], family: ModelFamily, directory: Path
) -> None:
    weights = load_file(directory / "model.safetensors")
    damage(weights)
    save_file(weights, directory / "model.safetensors")
    checkpoint = Checkpoint.open(directory)
    with pytest.raises(VaExportError) as caught:
        check_checkpoint(family, family.spec_from_checkpoint(checkpoint), checkpoint)
    assert method in caught.value.what
    assert caught.value.where == str(directory)


@pytest.mark.parametrize("place", [(), ("llm_config",), ("vision_config",)])
@pytest.mark.parametrize("key", ["quantization_config", "quantization", "compression_config"])
def test_a_configuration_of_quantised_weights_is_refused_at_once(
    place: tuple[str, ...], key: str, directory: Path
) -> None:
    config = json.loads((directory / "config.json").read_text())
    section = config[place[0]] if place else config
    section[key] = {"quant_method": "awq", "bits": 4}
    with pytest.raises(VaExportError) as caught:
        family_for(config)
    assert caught.value.where == f"config.json: {'.'.join([*place, key])}"
    section[key] = None
    assert family_for(config).name == "internvl2"


def test_buffers_without_effect_are_left_out_and_told(family: ModelFamily, directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    expected = family.spec_from_checkpoint(Checkpoint.open(directory))
    weights |= {
        f"{LAYER}attention.rotary_emb.inv_freq": torch.ones(16),
        "vision_model.embeddings.position_ids": torch.arange(65)[None],
        f"{LAYER}attention.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
        f"{LAYER}attention.masked_bias": torch.tensor(-1e4),
    }
    save_file(weights, directory / "model.safetensors")
    checkpoint = Checkpoint.open(directory)
    assert family.spec_from_checkpoint(checkpoint) == expected
    check_checkpoint(family, expected, checkpoint)
    assert len(checkpoint.notes) == 1
    assert "inv_freq" in checkpoint.notes[0]
    weights[f"{LAYER}attention.bias"] = torch.ones(128)  # this one would have an effect
    save_file(weights, directory / "model.safetensors")
    with refused(directory, f"{LAYER}attention.bias"):
        check_checkpoint(family, expected, Checkpoint.open(directory))


def test_sound_weights_pass(family: ModelFamily, directory: Path) -> None:
    checkpoint = Checkpoint.open(directory)
    check_checkpoint(family, family.spec_from_checkpoint(checkpoint), checkpoint)
    check_checkpoint(
        family, family.spec_from_checkpoint(checkpoint, Choices(1)), checkpoint
    )  # layer 1's tensors are left over


@pytest.mark.parametrize(
    ("section", "key", "value", "named"),
    [
        ("llm_config", "num_hidden_layers", 3, [7, "language_model.model.layers.2.attention.wo.weight"]),
        ("llm_config", "num_hidden_layers", 1, [7, "language_model.model.layers.1.attention.wo.weight"]),
        ("llm_config", "num_key_value_heads", 4, [2, [256, 128], [384, 128]]),
        ("llm_config", "intermediate_size", 512, [[512, 128]]),
        ("vision_config", "qk_normalization", True, [4]),
        ("vision_config", "num_hidden_layers", 1, ["vision_model.encoder.layers.1.attn.proj.bias"]),
    ],
)
def test_a_config_that_contradicts_the_weights_is_refused(
    section: str, key: str, value: Any, named: list[object], family: ModelFamily, directory: Path
) -> None:
    config = json.loads((directory / "config.json").read_text())
    config[section][key] = value
    (directory / "config.json").write_text(json.dumps(config))
    checkpoint = Checkpoint.open(directory)
    with refused(directory, *named):
        check_checkpoint(family, family_for(config).spec_from_checkpoint(checkpoint), checkpoint)


def test_weights_that_are_not_finite_are_refused(family: ModelFamily, directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    weights["language_model.model.layers.0.attention.wqkv.weight"][3, 5] = float("nan")
    save_file(weights, directory / "model.safetensors")
    checkpoint = Checkpoint.open(directory)
    with refused(directory / "model.safetensors", "language_model.model.layers.0.attention.wqkv.weight", 1):
        load_model(family, family.spec_from_checkpoint(checkpoint), checkpoint)
