"""A refusal is held by its type, its place and the values it names, never by the words of its sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from va_export.errors import VaExportError


@contextmanager
def refused(
    where: str | Path, *named: object, fix: bool = True, kind: type[VaExportError] = VaExportError
) -> Iterator[pytest.ExceptionInfo[VaExportError]]:
    """The block raises a VaExportError, of exactly this kind.

    Args:
        where: what the error is about: a name or a path as it was given, with or without a place inside of it
            (`manifest.json: limits`), or the last parts of a path.
        named: values from the test's own input (a name, a number, a path) that the error must mention, whole:
            5 is not found in 15.
        fix: whether the error says what to do next.
        kind: a class of errors that the product tells apart, such as `HubUnreachable`.
    """
    with pytest.raises(kind) as caught:
        yield caught
    error = caught.value
    assert type(error) is kind, repr(error)
    holds(error.what, error.where, error.fix, where, *named, fix=fix)


def holds(what: str, said: str | None, cure: str | None, where: str | Path, *named: object, fix: bool = True) -> None:
    """The three parts of a refusal are as `refused` asks."""
    whole = f"{what}\n  where: {said}\n  fix:   {cure}"
    assert said is not None and re.search(rf"(^|/){re.escape(str(where))}(: |/|$)", said), f"not about {where}: {whole}"
    missing = [value for value in named if not re.search(rf"(?<!\w){re.escape(str(value))}(?!\w)", what)]
    assert not missing, f"does not name {missing}: {whole}"
    assert bool(cure) == fix, whole
