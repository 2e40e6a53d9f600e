"""A tiny checkpoint with more decoder layers than the family's own: layers 2 and 3 are another seed's 0 and 1."""

from __future__ import annotations

import json
import re
from pathlib import Path

from safetensors.numpy import load_file, save_file


def write_deep_checkpoint(directory: Path) -> Path:
    """Write it with its tokenizer; returns `directory`."""
    from va_export.models import family_named

    family = family_named("internvl2")
    family.write_tiny_checkpoint(directory)
    more = family.write_tiny_checkpoint(directory.with_name(f"{directory.name}-more"), seed=1)
    weights = load_file(directory / "model.safetensors")
    for name, value in load_file(more / "model.safetensors").items():
        if match := re.match(r"(language_model\.model\.layers\.)(\d)(\..*)", name):
            weights[f"{match[1]}{int(match[2]) + 2}{match[3]}"] = value
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config["llm_config"]["num_hidden_layers"] = 4
    (directory / "config.json").write_text(json.dumps(config))
    return directory
