"""A bundle on PyTorch: the Hugging Face model, its weights read back from the bundle's ONNX files.

For researchers who want the exported weights at any precision in a model they can open, and for bfloat16, which ONNX
Runtime's CPU provider does not compute. It needs the `export` extra; the other backends do not.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from va_export.errors import VaExportError
from va_export.runtime.backends.backend import Bool, Float32, HostBackend, Int64, component_file
from va_export.runtime.backends.decoder_parts import decoder_parts
from va_export.runtime.backends.external_data import held_graph

if TYPE_CHECKING:
    import torch

    from va_export.bundle.manifest import Manifest


class TorchBackend(HostBackend):
    """Runs on the CPU at the bundle's precision."""

    name = "torch"
    device = "cpu"

    def __init__(self, manifest: Manifest) -> None:
        try:
            import torch
            import transformers  # noqa: F401  (asked for here so that the message names both)
        except ImportError as error:
            raise VaExportError(
                f"the torch backend needs PyTorch and transformers: {error}",
                where="backend torch",
                fix="pip install 'va-export[export]', or use --backend onnxruntime",
            ) from error
        self._torch = torch
        self.part_milliseconds: dict[str, float] = {}  # the shards' weights are one model here
        self._model = _load_model(manifest)

    def vision(self, pixel_values: Float32) -> Float32:
        with self._torch.no_grad():
            features = self._model.model.get_image_features(self._torch.from_numpy(pixel_values), return_dict=True)
        tokens: Float32 = features.pooler_output.flatten(0, 1).float().numpy()
        return tokens

    def embed(self, input_ids: Int64, is_visual: Bool, visual_tokens: Float32) -> Float32:
        with self._torch.no_grad():
            embeds: Float32 = self._model.get_input_embeddings()(self._torch.from_numpy(input_ids)).float().numpy()
        embeds[is_visual] = visual_tokens[: int(is_visual.sum())]
        return embeds

    def score(self, visual_tokens: Float32) -> tuple[Float32, Int64]:
        raise VaExportError("PyTorch runs no graph of the score", where="backend torch", fix="score on the host")

    def cache_capacity(self, needed: int, limit: int) -> int:
        return needed

    def new_cache(self, batch: int, capacity: int) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self._model.config.text_config)

    def decode(
        self, inputs_embeds: Float32, key_log_gain: Float32, value_gain: Float32, past_length: Int64, cache: Any
    ) -> Float32:
        torch = self._torch
        language_model = self._model.model.language_model
        with torch.no_grad():
            hidden = language_model(
                inputs_embeds=torch.from_numpy(inputs_embeds).to(self._model.dtype),
                past_key_values=cache,
                use_cache=True,
                key_log_gain=torch.from_numpy(key_log_gain),
                value_gain=torch.from_numpy(value_gain),
            ).last_hidden_state
            logits: Float32 = self._model.lm_head(hidden[:, -1]).float().numpy()
        return logits

    def close(self) -> None:
        del self._model


def _load_model(manifest: Manifest) -> Any:
    import torch

    from va_export.anchor.hugging_face import use_anchored_attention
    from va_export.models import family_for

    config = json.loads(manifest.text("config.json"))
    family = family_for(config)
    model_data = manifest.data["model"]
    spec = family.spec_from_config(config, model_data["text"]["num_layers"], model_data.get("image_token_id"))
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[manifest.data["precision"]]
    with torch.device("meta"):
        model: Any = family.build_model(spec)
    state: dict[str, torch.Tensor] = {}
    for component in ("vision", "embedding", *(part.name for part in decoder_parts(manifest))):
        state.update(_weights(manifest, component, set(family.weight_map(spec))))
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in state.items()}, assign=True, strict=True)
    return use_anchored_attention(model.eval())


def _weights(manifest: Manifest, component: str, names: set[str]) -> dict[str, torch.Tensor]:
    import onnx_ir as ir
    import torch

    weights = {}
    with held_graph(manifest, component_file(manifest, component, "onnx")) as path:
        for name, value in ir.load(path).graph.initializers.items():
            if name not in names or value.const_value is None:
                continue
            array = value.const_value.numpy()
            if value.const_value.dtype == ir.DataType.BFLOAT16:
                tensor = torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
            else:
                tensor = torch.from_numpy(array.copy())
            # Linear weights were turned round for MatMul (passes/fold_weight_transposes).
            turned = any(use.node.op_type == "MatMul" and use.idx == 1 for use in value.uses())
            weights[name] = tensor.T.contiguous() if turned else tensor
    return weights
