"""A bundle on PyTorch: the Hugging Face model, its weights read back from the bundle's ONNX files.

For researchers who want the exported weights at any precision in a model they can open, and for bfloat16, which ONNX
Runtime's CPU provider does not compute. It needs the `export` extra; the other backends do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from va_export.bundle.decoder_shards import DECODER
from va_export.documents import parse
from va_export.errors import VaExportError
from va_export.runtime.backends.backend import Array, Float32, HostBackend, Int64, Slots, component_file
from va_export.runtime.backends.decoder_parts import decoder_parts
from va_export.runtime.backends.external_data import held_graph

if TYPE_CHECKING:
    import torch

    from va_export.bundle.manifest import Manifest
    from va_export.models.component import Component


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
        self._manifest = manifest
        self._model, components = _load_model(manifest)
        self._modules = {
            component.name: (component, component.build(self._model))
            for component in components
            if component.build is not None and component.shard is None
        }

    def run(self, component: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if component not in self._modules:
            raise VaExportError(
                f"PyTorch runs no graph of the {component}", where="backend torch", fix="score on the host"
            )
        description, module = self._modules[component]
        tensors = [self._torch.from_numpy(np.ascontiguousarray(inputs[tensor.name])) for tensor in description.inputs]
        with self._torch.no_grad():
            (output,) = description.outputs
            return {output.name: module(*tensors).numpy()}

    def cache_capacity(self, needed: int, limit: int) -> int:
        return needed

    def prefill_chunk(self, length: int) -> int:
        return length  # the attention bounds its own memory

    def new_cache(self, batch: int, capacity: int) -> list[Any]:
        """One of Hugging Face's caches a row: rows of one are all of one length."""
        from transformers import DynamicCache

        return [DynamicCache(config=self._model.config.text_config) for _ in range(batch)]

    def cache_row(self, cache: list[Any], row: int) -> list[Any]:
        return cache[row : row + 1]

    def read_slots(self, cache: list[Any], slots: slice) -> Slots:
        torch, ((row,), text) = self._torch, (cache, self._manifest.data.model.text)
        nothing = torch.zeros(1, text.num_kv_heads, 0, text.head_dim, dtype=self._model.dtype)
        kept = [nothing if held is None else held for layer in row.layers for held in (layer.keys, layer.values)]
        # NumPy has no bfloat16: its bits travel as int16.
        bits = [held.view(torch.int16) if held.dtype == torch.bfloat16 else held for held in kept]
        return {DECODER: [held[0, :, slots].numpy().copy() for held in bits]}

    def write_slots(self, cache: list[Any], start: int, slots: Slots) -> None:
        (row,) = cache
        tensors = [self._torch.from_numpy(kept)[None].view(self._model.dtype) for kept in slots[DECODER]]
        assert start == row.get_seq_length()  # a cache of this kind grows at its end
        for layer, (keys, values) in enumerate(zip(tensors[::2], tensors[1::2], strict=True)):
            row.update(keys, values, layer)

    def decode(
        self,
        inputs_embeds: Float32,
        position_ids: Int64,
        key_log_gain: Float32,
        value_gain: Float32,
        past_length: Int64,
        cache: list[Any],
    ) -> Float32:
        from va_export.anchor.hugging_face_cache import with_cache
        from va_export.models import deepstack

        torch = self._torch
        rows, decoder = [], self._model.model.language_model
        for row, row_cache in enumerate(cache):
            one = slice(row, row + 1)
            positions = torch.from_numpy(np.ascontiguousarray(position_ids[:, one]))  # (axes, 1, S)
            with torch.no_grad():
                hidden = decoder(
                    **deepstack.arguments(
                        torch.from_numpy(inputs_embeds[one]).to(self._model.dtype), decoder.config.hidden_size
                    ),
                    position_ids=positions[0] if len(positions) == 1 else positions,
                    use_cache=True,
                    **with_cache(decoder, row_cache),
                    key_log_gain=torch.from_numpy(key_log_gain[one]),
                    value_gain=torch.from_numpy(value_gain[one]),
                ).last_hidden_state
                rows.append(self._model.lm_head(hidden[:, -1]).float().numpy())
        return np.concatenate(rows)

    def close(self) -> None:
        del self._model, self._modules


def _load_model(manifest: Manifest) -> tuple[Any, tuple[Component, ...]]:
    """The model with the bundle's weights, and its parts."""
    import torch

    from va_export.anchor.hugging_face import use_anchored_attention
    from va_export.models import family_for
    from va_export.models.family import Choices

    where, fix = manifest.path("config.json"), "copy or export the bundle again"
    config = parse(manifest.held.read("config.json"), what="the model's configuration", where=where, fix=fix)
    family = family_for(config)
    data = manifest.data
    choices = Choices(data.model.text.num_layers, data.model.image_token_id, data.limits.max_pixels)
    spec = family.spec_from_config(config, choices)
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[manifest.data.precision]
    with torch.device("meta"):
        model: Any = family.build_model(spec)
    state: dict[str, torch.Tensor] = {}
    names = set(family.weight_map(spec))
    components = family.components(spec, manifest.data.precision, decoder_parts(manifest))
    for component in components:
        state.update(_weights(manifest, component.name, names))
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in state.items()}, assign=True, strict=True)
    return use_anchored_attention(model.eval()), components


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
