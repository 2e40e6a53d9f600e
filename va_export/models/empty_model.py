"""A Hugging Face model without weights, for a family to put its own modules into."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any


def empty_model(model_class: Any, settings: Mapping[str, Any], attention: str) -> Any:
    """A model of that class, its parameters uninitialised; the tower's attention is SDPA.

    Args:
        settings: of the class's own configuration.
        attention: the decoder's, by the name under which transformers knows it.
    """
    from transformers.initialization import no_init_weights

    if attention == "anchored":
        import va_export.anchor.hugging_face  # noqa: F401  registers the attention under that name

    config = model_class.config_class(**copy.deepcopy(dict(settings)))
    config._attn_implementation = {"": "sdpa", "vision_config": "sdpa", "text_config": attention}
    with no_init_weights():
        return model_class(config)
