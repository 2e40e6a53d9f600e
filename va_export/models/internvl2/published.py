"""The published checkpoints' configurations, for planning and for random weights where the Hub is out of reach.

The facts and their sources are in `published.toml`; what all sizes share is here.
"""

from __future__ import annotations

import copy
import tomllib
from functools import cache
from importlib import resources
from typing import Any

_SHARED: dict[str, Any] = {
    "architectures": ["InternVLChatModel"],
    "model_type": "internvl_chat",
    "downsample_ratio": 0.5,
    "force_image_size": 448,
    "ps_version": "v2",
    "select_layer": -1,
}
_SHARED_VISION: dict[str, Any] = {
    "architectures": ["InternVisionModel"],
    "model_type": "intern_vit_6b",
    "hidden_act": "gelu",
    "image_size": 448,
    "layer_norm_eps": 1e-6,
    "num_channels": 3,
    "patch_size": 14,
}


def published_names() -> tuple[str, ...]:
    """The hub ids of the checkpoints that are known, smallest first."""
    models = _table()["models"]
    return tuple(sorted(models, key=lambda name: models[name]["parameters"]))


def published_config(hub_id: str) -> dict[str, Any] | None:
    """What config.json of the checkpoint `hub_id` says, or None where it is not known."""
    model = _table()["models"].get(hub_id)
    if model is None:
        return None
    vision = _table()["vision"][model["vision"]]
    return copy.deepcopy(
        {
            **_SHARED,
            "template": model["template"],
            "llm_config": model["llm_config"],
            "vision_config": {**_SHARED_VISION, **vision},
        }
    )


def published_parameters(hub_id: str) -> float:
    """The number of parameters that the publishers state, rounded as they round it."""
    return float(_table()["models"][hub_id]["parameters"])


@cache
def _table() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("published.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
