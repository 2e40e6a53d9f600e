"""A family that nobody publishes: what a newcomer writes, and all of it. `test_toy_family.py` gives it its row.

Frames are pooled to four colours each and projected; the decoder is Hugging Face's Llama with tied sizes of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from va_export.bundle.decoder_shards import DecoderShard
from va_export.bundle.tensors import DimensionRange, TensorInfo
from va_export.models.component import Component, decoder_component, embedding_component
from va_export.models.family import AS_IT_IS, Choices, ModelSpec, TextShape, VisionShape, WeightSource
from va_export.runtime.processing import Processing
from va_export.runtime.processing.fixed_frames import FixedFrames

SIDE, TOKENS, IMAGE_TOKEN = 8, 4, 99
TEXT = TextShape(
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    vocab_size=100,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    rope_scaling=None,
)


class _Rotary(nn.Module):
    """Angles of Llama's rotary embedding, without buffers, which are lost where a model is made without storage."""

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        exponents = torch.arange(0, TEXT.head_dim, 2, dtype=torch.float32, device=x.device) / TEXT.head_dim
        angles = position_ids[..., None].float() / TEXT.rope_theta**exponents  # [B, S, d/2]
        angles = torch.cat([angles, angles], -1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


class ToyModel(nn.Module):
    """What the shared components read of a model: `model.language_model`, `lm_head`, the input embeddings."""

    def __init__(self, spec: ModelSpec, attention: str) -> None:
        from transformers import LlamaConfig, LlamaModel

        import va_export.anchor.hugging_face  # noqa: F401  registers the attention

        super().__init__()
        config = LlamaConfig(**dict(spec.hf_config), attn_implementation=attention)
        self.config = type("Config", (), {"text_config": config})()
        self.model = nn.Module()
        self.model.language_model = LlamaModel(config)
        self.model.language_model.rotary_emb = _Rotary()
        self.model.colours = nn.Linear(3, config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    dtype = property(lambda self: self.lm_head.weight.dtype)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.language_model.embed_tokens  # type: ignore[no-any-return,union-attr]

    def get_decoder(self) -> nn.Module:
        return self.model.language_model  # type: ignore[return-value]


class VisionGraph(nn.Module):
    """(frames, 3, S, S) → (frames · 4, hidden_size): the mean colour of each quarter, projected."""

    def __init__(self, hf: Any) -> None:
        super().__init__()
        self.hf: Any = hf

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        half = SIDE // 2
        quarters = pixel_values.reshape(-1, 3, 2, half, 2, half).mean(dim=(3, 5))  # [F, 3, 2, 2]
        colours = quarters.flatten(2).transpose(1, 2).reshape(-1, 3)  # [4 F, 3]
        weight = self.hf.model.colours.weight
        return self.hf.model.colours(colours.to(weight.dtype)).to(torch.float32)  # type: ignore[no-any-return]


class Toy:
    """The family's entry in the table."""

    name = "toy"
    architectures = ("ToyForVideo",)

    def spec_from_config(self, config: Mapping[str, Any], choices: Choices = AS_IT_IS) -> ModelSpec:
        text = replace(TEXT, num_layers=choices.num_decoder_layers or config["layers"])
        names = {
            "num_attention_heads": "num_heads",
            "num_key_value_heads": "num_kv_heads",
            "num_hidden_layers": "num_layers",
        }
        shape = asdict(text)
        same = {
            name: shape[name] for name in ("hidden_size", "head_dim", "intermediate_size", "vocab_size", "rms_norm_eps")
        }
        return ModelSpec(
            family=self.name,
            hf_config={**same, **{hf: shape[ours] for hf, ours in names.items()}},
            text=text,
            vision=VisionShape(
                hidden_size=3, num_layers=1, num_heads=1, intermediate_size=3, positions_per_frame=TOKENS
            ),
            checkpoint_layers=config["layers"],
            text_architecture="LlamaForCausalLM",
            prompt_template="",
            image_token_id=IMAGE_TOKEN,
            eos_token_ids=(2,),
        )

    def spec_from_checkpoint(self, checkpoint: Any, choices: Choices = AS_IT_IS) -> ModelSpec:
        return self.spec_from_config(checkpoint.config, choices)

    def published_config(self, hub_id: str) -> dict[str, Any] | None:
        return None

    def build_model(self, spec: ModelSpec, attention: str = "anchored") -> nn.Module:
        return ToyModel(spec, attention).eval()

    def components(self, spec: ModelSpec, precision: str, shards: Sequence[DecoderShard]) -> tuple[Component, ...]:
        vision = Component(
            "vision",
            "vision",
            (TensorInfo("pixel_values", "float32", ("frames", 3, SIDE, SIDE)),),
            (TensorInfo("visual_tokens", "float32", ("visual_count", spec.text.hidden_size)),),
            VisionGraph,
            lambda limits: {"frames": {"frames": DimensionRange(1, limits.opt_frames, limits.max_frames)}},
        )
        embedding = embedding_component(spec, partial(self.visual_tokens, spec))
        return (vision, embedding, *(decoder_component(spec, precision, shard) for shard in shards))

    def visual_tokens(self, spec: ModelSpec, n_frames: int) -> int:
        return n_frames * TOKENS

    def weight_map(self, spec: ModelSpec) -> dict[str, WeightSource]:
        with torch.device("meta"):
            parameters = dict(self.build_model(spec).named_parameters())
        sources = {}
        for name, parameter in parameters.items():
            layer = int(name.split(".")[3]) if ".layers." in name else None
            is_text = name.startswith(("model.language_model", "lm_head"))
            component = "embedding" if "embed_tokens" in name else "decoder" if is_text else "vision"
            sources[name] = WeightSource(f"toy.{name}", tuple(parameter.shape), None, component, layer)  # type: ignore[arg-type]
        return sources

    def processing(self, spec: ModelSpec, checkpoint: Any) -> Processing:
        return FixedFrames(
            image_size=SIDE,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            resample="bilinear",
            frame_sampling="segment-midpoint",
            tokens_per_frame=TOKENS,
            image_token="<toy>",
            image_token_id=IMAGE_TOKEN,
            chat_template="{frames}{question}",
            frame_template="{number}{image}",
            bos_token_id=None,
            stop_token_ids=(2,),
        )

    def write_tokenizer(self, checkpoint: Any, directory: Path) -> None:
        return None

    def write_tiny_checkpoint(self, directory: Path, seed: int = 0) -> Path:
        from safetensors.torch import save_file

        directory.mkdir(parents=True, exist_ok=True)
        config = {"architectures": list(self.architectures), "layers": TEXT.num_layers}
        (directory / "config.json").write_text(json.dumps(config))
        generator = torch.Generator().manual_seed(seed)
        weights = {
            source.checkpoint_name: torch.ones(source.shape)
            if name.endswith("norm.weight") or "layernorm" in name
            else torch.randn(source.shape, generator=generator) * 0.3
            for name, source in self.weight_map(self.spec_from_config(config)).items()
        }
        save_file(weights, directory / "model.safetensors")
        return directory
