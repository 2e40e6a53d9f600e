"""The table of model families. A new family is a folder beside this file and one row here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from va_export.checkpoint.quantised import refuse_quantised
from va_export.errors import VaExportError
from va_export.models.family import ModelFamily
from va_export.models.internvl2 import InternVL2
from va_export.models.llava import Llava
from va_export.models.qwen2_5_vl import Qwen25VL
from va_export.models.qwen3_vl import Qwen3VL

FAMILIES: tuple[ModelFamily, ...] = (InternVL2(), Qwen25VL(), Qwen3VL(), Llava())


def family_for(config: Mapping[str, Any]) -> ModelFamily:
    """The family of a checkpoint, by the `architectures` of its config.json.

    Raises:
        VaExportError: no family reads that architecture, or the weights are quantised.
    """
    refuse_quantised(config)
    stated = config.get("architectures")
    architectures = [name for name in stated if isinstance(name, str)] if isinstance(stated, list) else []
    for family in FAMILIES:
        if any(architecture in family.architectures for architecture in architectures):
            return family
    known = ", ".join(sorted(name for family in FAMILIES for name in family.architectures))
    named = ", ".join(architectures) or f"none (model_type {config.get('model_type')!r})"
    raise VaExportError(
        f"unsupported architecture: {named}",
        where="config.json: architectures",
        fix=f"use a checkpoint of one of: {known}",
    )


def published_config(hub_id: str) -> dict[str, Any] | None:
    """What config.json of a published checkpoint says, from the families' own tables; None where none knows it."""
    for family in FAMILIES:
        if (config := family.published_config(hub_id)) is not None:
            return config
    return None


def family_named(name: str) -> ModelFamily:
    """The family called `name`, as a `ModelSpec` records it.

    Raises:
        VaExportError: there is no such family.
    """
    for family in FAMILIES:
        if family.name == name:
            return family
    raise VaExportError(
        f"unknown model family {name!r}", where="family", fix=f"use one of: {', '.join(f.name for f in FAMILIES)}"
    )
