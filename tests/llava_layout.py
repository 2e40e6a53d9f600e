"""Golden LLaVA checkpoints in either layout: transformers' holds the original's tensors under other names."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.numpy import load_file, save_file

GOLDEN = Path(__file__).parent / "data" / "golden"
_SAME_WEIGHTS = {"llava_onevision_tiny_hf": "llava_onevision_tiny"}
# Ends of a name are kept; the first start that fits is replaced.
_RENAMED = {
    "model.vision_tower.vision_tower.": "vision_tower.",
    "model.mm_projector.0.": "multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "multi_modal_projector.linear_2.",
    "model.image_newline": "image_newline",
    "model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}


def golden_checkpoint(name: str, scratch: Path) -> Path:
    """The folder of a golden checkpoint; one without weights of its own is completed in `scratch`."""
    if name not in _SAME_WEIGHTS:
        return GOLDEN / name
    shutil.copytree(GOLDEN / name, scratch / name)
    weights = load_file(GOLDEN / _SAME_WEIGHTS[name] / "model.safetensors")
    renamed = {_renamed(old): value for old, value in weights.items()}
    assert len(renamed) == len(weights)
    save_file(renamed, scratch / name / "model.safetensors", metadata={"format": "pt"})
    return scratch / name


def _renamed(name: str) -> str:
    start = next(start for start in _RENAMED if name.startswith(start))
    return _RENAMED[start] + name.removeprefix(start)
