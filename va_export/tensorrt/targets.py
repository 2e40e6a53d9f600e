"""Which GPUs an engine is built for.

TensorRT-RTX compiles ahead of time for a list of compute capabilities and finishes on the GPU; one engine
serves them all. Full TensorRT tunes on the GPU that is present and can build for no other.
"""

from __future__ import annotations

import re

from va_export.errors import VaExportError
from va_export.tensorrt.api import Flavor, TensorRT
from va_export.tensorrt.types import BuilderConfig

# The GPU in this machine; the only target of full TensorRT.
CURRENT_GPU = "current"
DEFAULT_TARGETS: dict[Flavor, tuple[str, ...]] = {
    "tensorrt": (CURRENT_GPU,),
    "tensorrt-rtx": ("sm80", "sm86", "sm89", "sm120"),
}


def parse_targets(text: str) -> tuple[str, ...]:
    """`sm80,sm89` or `current` → the targets in ascending order without repeats.

    Raises:
        VaExportError: a word that is no target, an empty list, or `current` beside others.
    """
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    if not words:
        raise VaExportError("no target is given", where="--target", fix="name GPUs as sm80,sm86,sm89,sm120")
    if wrong := [word for word in words if word != CURRENT_GPU and not re.fullmatch(r"sm\d{2,3}", word)]:
        raise VaExportError(
            f"{', '.join(wrong)} is no target",
            where="--target",
            fix=f"write sm and digits, as sm89, or {CURRENT_GPU}",
        )
    if CURRENT_GPU in words and len(set(words)) > 1:
        raise VaExportError(
            f"{CURRENT_GPU} cannot stand beside other targets",
            where="--target",
            fix="name GPUs, or the present one",
        )
    return tuple(sorted(set(words), key=lambda word: int(word[2:]) if word != CURRENT_GPU else 0))


def supported_targets(api: TensorRT) -> tuple[str, ...]:
    """What this TensorRT can build for, by its own list."""
    capabilities = getattr(api.module, "ComputeCapability", None)
    if api.flavor == "tensorrt" or capabilities is None:
        return (CURRENT_GPU,)
    numbers = sorted(int(name[2:]) for name in capabilities.__members__ if re.fullmatch(r"SM\d+", name))
    return (*(f"sm{number}" for number in numbers), CURRENT_GPU)


def check_targets(api: TensorRT, targets: tuple[str, ...]) -> None:
    """Refuse a target that this TensorRT does not know (RTX itself builds nothing and says little).

    Raises:
        VaExportError: with the list of what is possible.
    """
    supported = supported_targets(api)
    if not targets:
        raise VaExportError("no target is given", where="--target", fix=f"use {', '.join(supported)}")
    if unknown := [target for target in targets if target not in supported]:
        fix = (
            "leave --target out: full TensorRT builds for the GPU in this machine"
            if api.flavor == "tensorrt"
            else f"use {', '.join(supported)}; for another GPU build on it with --tensorrt tensorrt"
        )
        raise VaExportError(f"{api.label} cannot build for {', '.join(unknown)}", where="--target", fix=fix)


def set_targets(api: TensorRT, config: BuilderConfig, targets: tuple[str, ...]) -> None:
    """Write checked targets into a builder's configuration; nothing to write for full TensorRT."""
    if api.flavor == "tensorrt":
        return
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        name = target.upper()  # SM89, CURRENT
        if not config.set_compute_capability(getattr(api.module.ComputeCapability, name), index):
            raise VaExportError(f"{api.label} refused the target {target}", where="--target")
