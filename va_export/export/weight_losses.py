"""What the precision does to the weights, told to people: the error when some do not fit, the note when some fade."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from va_export.errors import VaExportError
from va_export.export.narrowing import Loss

if TYPE_CHECKING:
    from va_export.models.family import WeightSource

_LISTED = 20
_LARGEST = {"fp16": "65504", "bf16": "3.39e38", "fp32": "3.4e38"}


def unusable_weights(
    losses: Mapping[str, Loss], weight_map: Mapping[str, WeightSource], precision: str, where: Path
) -> VaExportError:
    """The error that names every weight that is not finite or beyond the precision's range.

    Args:
        losses: by name, those weights alone.
    """
    lines = [_line(name, weight_map[name].checkpoint_name, loss) for name, loss in sorted(losses.items())]
    if len(lines) > _LISTED:
        lines = [*lines[:_LISTED], f"and {len(lines) - _LISTED} more"]
    not_finite = any(loss.not_finite for loss in losses.values())
    fixes = []
    if not_finite:
        fixes.append("download the checkpoint again, or take an earlier one if it was trained here")
    if any(loss.overflow for loss in losses.values()):
        fixes.append(
            f"export with --precision bf16 or fp32, or accept ±{_LARGEST[precision]} instead, with --clip-overflow"
        )
    what = "are not all finite" if not_finite else f"have values that {precision} cannot hold"
    count = f"{len(losses)} weights" if len(losses) > 1 else "1 weight"
    if count == "1 weight":
        what = what.replace("are", "is").replace("have", "has")
    return VaExportError(f"{count} {what}:\n    " + "\n    ".join(lines), where=where, fix="; ".join(fixes))


def _line(name: str, checkpoint_name: str, loss: Loss) -> str:
    parts = []
    if loss.not_finite:
        parts.append(f"{loss.not_finite} NaN or infinite values")
    if loss.overflow:
        parts.append(f"{loss.overflow} values out of range, up to {loss.largest:g},")
    return f"{checkpoint_name}: {' and '.join(parts)} of {loss.elements} ({name})"


def loss_entry(losses: Mapping[str, Loss]) -> dict[str, Any]:
    """The manifest's `precision_loss`: totals, and the counts of every weight that lost something."""
    totals = _total(losses)
    return {
        "clipped": totals.overflow,
        "to_zero": totals.to_zero,
        "to_subnormal": totals.to_subnormal,
        "weights": {
            name: {
                "elements": loss.elements,
                "clipped": loss.overflow,
                "to_zero": loss.to_zero,
                "to_subnormal": loss.to_subnormal,
                "largest": loss.largest,
            }
            for name, loss in sorted(losses.items())
        },
    }


def loss_note(losses: Mapping[str, Loss], precision: str) -> str | None:
    """One line about values that were clipped or are too small for the precision; None if there are none."""
    totals = _total(losses)
    clipped = {name: loss for name, loss in losses.items() if loss.overflow}
    parts = []
    if clipped:
        largest = max(loss.largest for loss in clipped.values())
        parts.append(f"{totals.overflow} weights up to {largest:g} were clipped to ±{_LARGEST[precision]}")
    if totals.to_zero or totals.to_subnormal:
        worst = max(losses, key=lambda name: losses[name].to_zero + losses[name].to_subnormal)
        share = (losses[worst].to_zero + losses[worst].to_subnormal) / losses[worst].elements
        parts.append(
            f"of {totals.elements} values in {len(losses)} weights, {totals.to_zero} are so small that they became 0"
            f" and {totals.to_subnormal} subnormal, with fewer digits (most in {worst}: {share:.3%})"
        )
    return f"{precision}: {'; '.join(parts)}" if parts else None


def _total(losses: Mapping[str, Loss]) -> Loss:
    total = Loss()
    for loss in losses.values():
        total += loss
    return total
