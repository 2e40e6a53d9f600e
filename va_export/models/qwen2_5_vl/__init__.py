"""Qwen2.5-VL (Qwen, 2025, arXiv 2502.13923): a tower with window attention over patches of pictures of any size, a
merger, and Qwen2.5 with positions in time, row and column.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from va_export.models.family import Choices, ModelSpec, WeightSource
from va_export.models.patch_family import PatchFamily
from va_export.models.qwen2_5_vl import config as _config
from va_export.models.qwen2_5_vl import key_map

if TYPE_CHECKING:
    from torch import nn

    from va_export.checkpoint.files import Checkpoint
    from va_export.models.component import Component
    from va_export.runtime.processing import Processing


class Qwen25VL(PatchFamily):
    """The family's entry in the table; the methods are documented in `models.family.ModelFamily`."""

    name: str = _config.FAMILY
    architectures: tuple[str, ...] = ("Qwen2_5_VLForConditionalGeneration",)

    def read_spec(
        self, config: Mapping[str, Any], choices: Choices, names: Collection[str] = (), stop_ids: tuple[int, ...] = ()
    ) -> ModelSpec:
        return _config.spec_from_config(config, choices, names, stop_ids)

    def published_config(self, hub_id: str) -> dict[str, Any] | None:
        from va_export.models.qwen2_5_vl import published

        return published.published_config(hub_id)

    def build_model(self, spec: ModelSpec, attention: str = "anchored") -> nn.Module:
        from va_export.models.qwen2_5_vl import reference

        return reference.build_model(spec, attention)

    def vision(self, spec: ModelSpec) -> Component:
        from va_export.models.qwen2_5_vl.vision import vision_component

        return vision_component(spec)

    def weight_map(self, spec: ModelSpec) -> Mapping[str, WeightSource]:
        return key_map.weight_map(spec)

    def processing(self, spec: ModelSpec, checkpoint: Checkpoint) -> Processing:
        from va_export.models.qwen2_5_vl import prompt

        return prompt.processing(spec, checkpoint, self.first_id(checkpoint))

    def write_tiny_checkpoint(self, directory: Path, seed: int = 0) -> Path:
        from va_export.models.qwen2_5_vl import tiny

        return tiny.write_tiny_checkpoint(directory, seed)
