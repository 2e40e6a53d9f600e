"""The KV cache under both of the names that Hugging Face's models have for it.

It is `past_key_values` in every `forward` up to transformers 5.23 and `cache` from 5.24 on, in models, decoder layers
and attention alike. The newer releases still take the older name where their own code declares it, with a warning and
for the time being; the older ones hand an unknown `cache` down as one keyword more and forget it, and the answer goes
on without its prompt. So the signature is asked. No version is: a model may bring code of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from va_export.errors import VaExportError

_NAMES = ("cache", "past_key_values")


def cache_name(module: torch.nn.Module) -> str:
    """What `module.forward` calls its KV cache: a Hugging Face model, a decoder or a layer of one.

    Raises:
        VaExportError: it takes none by a name that is known here.
    """
    parameters = inspect.signature(module.forward).parameters
    for name in _NAMES:
        if name in parameters:
            return name
    raise VaExportError(
        f"forward takes no KV cache as {' or '.join(_NAMES)}",
        where=type(module).__name__,
        fix="use a transformers release that va-export names in its extra `export`",
    )


def with_cache(module: torch.nn.Module, cache: object) -> dict[str, object]:
    """The keyword argument that gives `module.forward` its KV cache."""
    return {cache_name(module): cache}


def cache_of_call(arguments: Mapping[str, Any]) -> Any:
    """The KV cache among a forward call's arguments by name, or None. A caller may still use the older name where the
    signature has the newer one."""
    return next((arguments[name] for name in _NAMES if arguments.get(name) is not None), None)


def cache_of_output(output: Any) -> Any:
    """The KV cache that a model returned, or None."""
    return next((getattr(output, name) for name in _NAMES if hasattr(output, name)), None)
