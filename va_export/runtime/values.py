"""What a caller may give for a single value (arrays: `arguments.py`): the value in Python's own type, or an error that
names the argument. NumPy's scalars count as what they hold; a truth value is no number and text is neither."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from va_export.errors import VaExportError

_SHOWN = 60  # characters of a wrong value that an error shows


def whole_number(name: str, value: Any, *, least: int) -> int:
    """An integer of at least `least`.

    Raises:
        VaExportError: another type, or a smaller number.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise _wrong(name, value, "a whole number")
    number = operator.index(value)
    if number < least:
        raise VaExportError(f"{name} must be at least {least}, not {number}", where=name, fix=f"raise {name}")
    return number


def number(name: str, value: Any, *, least: float, below: float) -> float:
    """A real number in [least, below).

    Raises:
        VaExportError: another type, or one outside, as NaN is.
    """
    if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
        raise _wrong(name, value, "a number")
    if not least <= value < below:
        raise VaExportError(
            f"{name} must lie in [{least:g}, {below:g}), not {_shown(value)}", where=name, fix=f"choose another {name}"
        )
    return float(value)


def flag(name: str, value: Any) -> bool:
    """True or False.

    Raises:
        VaExportError: another type.
    """
    if not isinstance(value, bool | np.bool_):
        raise _wrong(name, value, "True or False")
    return bool(value)


def text(name: str, value: Any) -> str:
    """Text that can be written as UTF-8, which tokenizers and files need.

    Raises:
        VaExportError: another type, or lone surrogates, by which Python hands on bytes that are not UTF-8.
    """
    if not isinstance(value, str):
        raise _wrong(name, value, "text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise VaExportError(
            f"{name} is not UTF-8 from character {error.start + 1} on: {_shown(value[error.start :])}",
            where=name,
            fix="use UTF-8 (for a path: rename it), in the terminal's settings too",
        ) from None
    return value


def choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """One of a few words.

    Raises:
        VaExportError: anything else.
    """
    if not isinstance(value, str) or value not in choices:
        raise VaExportError(f"{name} cannot be {_shown(value)}", where=name, fix=f"use one of: {', '.join(choices)}")
    return value


def absolute_path(name: str, value: Any) -> Path:
    """A path, made absolute, so that it still leads there when the working directory changes.

    Raises:
        VaExportError: not a path, an empty one, or one with a character that no path has.
    """
    try:
        path = os.fsdecode(value)
    except TypeError:
        raise _wrong(name, value, "a path") from None
    if not path or "\0" in path:
        raise _wrong(name, path, "a path")
    return Path(text(name, str(Path(path).absolute())))  # ONNX Runtime and tokenizers open no other


def expanded(name: str, path: str) -> Path:
    """A path with `~` and `~user` written out.

    Raises:
        VaExportError: there is no such user, or no home directory.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise VaExportError(
            f"there is no home directory for {path.split('/')[0]}", where=name, fix="write the directory out"
        ) from None


def devices(name: str, value: Any) -> tuple[int, ...]:
    """Numbers of GPUs, at least one and none twice.

    Raises:
        VaExportError: anything else.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | np.ndarray) or not len(value):
        raise _wrong(name, value, "a list of numbers of GPUs")
    numbers = tuple(whole_number(name, one, least=0) for one in value)
    if len(set(numbers)) < len(numbers):
        raise VaExportError(f"{name} names a GPU twice: {_shown(numbers)}", where=name, fix="name each GPU once")
    return numbers


def function(name: str, value: Any) -> Any:
    """What can be called, or None.

    Raises:
        VaExportError: anything else.
    """
    if value is not None and not callable(value):
        raise _wrong(name, value, "a function or None")
    return value


def _wrong(name: str, value: Any, expected: str) -> VaExportError:
    return VaExportError(
        f"{name} must be {expected}, not {_shown(value)} ({type(value).__name__})", where=name, fix=f"give {expected}"
    )


def _shown(value: Any) -> str:
    shown = ascii(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
