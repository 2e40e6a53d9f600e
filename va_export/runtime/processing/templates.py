"""Templates of prompts: text with fields in braces."""

from __future__ import annotations

import re

_FIELD = re.compile(r"\{(\w+)\}")


def fill(template: str, **values: str) -> str:
    """Fill the fields of a template in one pass, so that a value may itself contain braces."""
    return _FIELD.sub(lambda match: values[match[1]], template)


def check_fields(name: str, template: str, expected: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    """Hold a template against the fields that it must have, each once, and those that it may have.

    Raises:
        ValueError: others.
    """
    found = tuple(_FIELD.findall(template))
    if sorted(set(found) - set(optional)) != sorted(expected) or len(set(found)) < len(found):
        raise ValueError(f"{name} has the fields {list(found)}, expected {list(expected)}")
