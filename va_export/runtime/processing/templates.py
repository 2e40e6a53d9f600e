"""Templates of prompts: text with fields in braces."""

from __future__ import annotations

import re
from collections.abc import Sequence

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


def next_turn(template: str, question: str, closings: Sequence[str]) -> str | None:
    """What follows an answer in a conversation: its end, a turn that asks `question`, and the beginning of the next
    answer; None where the template does not tell.

    A template ends a turn in two places: the system's before the question's, and the question's.

    Args:
        template: of a first question, with the field {question}.
        closings: texts of the tokens that may end an answer.
    """
    before, _, after = template.partition("{question}")
    head = before[: match.start()] if (match := _FIELD.search(before)) else before
    closing = next((text for text in closings if text and after.startswith(text) and text in head), None)
    return None if closing is None else closing + head.rpartition(closing)[2] + question + after
