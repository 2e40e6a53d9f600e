"""The component of a tower whose pictures keep their sizes. `visual_count` counts decoder tokens; each has merge_size²
patches, which attend within their grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from va_export.bundle.tensors import DimensionRange, Profiles, TensorInfo
from va_export.models.component import Component, visual_range
from va_export.models.family import ModelSpec
from va_export.models.patch_shape import patches
from va_export.settings import Limits


def ragged_inputs(name: str, rows: str, width: int | str, patches_per_token: int) -> tuple[TensorInfo, ...]:
    """The component's inputs that say one division into groups.

    Args:
        rows, width: the shape's names, or a number.
    """
    return (
        TensorInfo(f"{name}_rows", "int64", (rows, width)),
        TensorInfo(f"{name}_lengths", "int64", (rows,)),
        TensorInfo(f"{name}_slots", "int64", ("visual_count", patches_per_token)),
    )


def patch_component(
    spec: ModelSpec,
    build: Callable[[Any], torch.nn.Module],
    reference: Callable[[Any, Sequence[torch.Tensor]], torch.Tensor],
    inputs: tuple[TensorInfo, ...],
    ranges: Callable[[Limits], Mapping[str, DimensionRange]] = lambda limits: {},
) -> Component:
    """A tower's component.

    Args:
        inputs, ranges: the family's own; the inputs come between the positions of the patches and their grids.
    """
    vision = patches(spec)
    unit = vision.merge_size**2

    def all_ranges(limits: Limits) -> Profiles:
        grids = [vision.grids(frames) for frames in (limits.opt_frames, limits.max_frames)]
        largest = unit * vision.tokens(max(vision.video_pixels, vision.image_pixels))
        return {
            "patches": {
                "visual_count": visual_range(limits, vision.visual_tokens),
                **ranges(limits),
                "grids": DimensionRange(1, *grids),
                "grid_patches": DimensionRange(unit, unit * vision.tokens(vision.video_pixels), largest),
            }
        }

    return Component(
        "vision",
        "vision",
        (
            TensorInfo("pixel_values", "float32", ("visual_count", unit, vision.patch_values)),
            TensorInfo("patch_positions", "int64", ("visual_count", unit, 2)),
            *inputs,
            *ragged_inputs("grid", "grids", "grid_patches", unit),
        ),
        (TensorInfo("visual_tokens", "float32", ("visual_count", spec.text.width_at(0))),),
        build,
        all_ranges,
        has_custom_op=True,
        reference=reference,
    )
