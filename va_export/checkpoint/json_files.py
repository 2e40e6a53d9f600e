"""The JSON files beside a checkpoint's weights: read, and held against the form of what is used of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec

from va_export.errors import VaExportError

_Form = TypeVar("_Form")
_AT = re.compile(r"(.*) - at (?:`key` in )?`\$\.?(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")


def read_json(path: Path, *, what: str) -> dict[str, Any]:
    """Read a JSON object, or say which file is missing or broken; `what` names its role. A byte order mark is let
    through."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise VaExportError(f"the {what} is missing", where=path, fix="complete the checkpoint directory") from None
    except (OSError, ValueError, RecursionError) as error:
        raise VaExportError(f"the {what} is not readable JSON: {error}", where=path, fix="download it again") from error
    if not isinstance(content, dict):
        raise VaExportError(
            f"the {what} is a JSON {type(content).__name__}, not an object", where=path, fix="download it again"
        )
    return content


def read_form(path: Path, form: type[_Form], *, what: str) -> _Form:
    """`read_json`, in a form; the form's defaults where there is no such file."""
    return as_form(read_json(path, what=what) if path.is_file() else {}, form, where=path)


def as_form(content: dict[str, Any], form: type[_Form], *, where: Path | str) -> _Form:
    """Plain data in the form of a `msgspec.Struct`, which lets keys through that it does not declare.

    Raises:
        VaExportError: a key is missing or holds what it must not; `where` names it, as `FILE: section.key`.
    """
    fix = "take this file from the original checkpoint"
    try:
        plain = _plain(content)
        return msgspec.convert(plain, form)
    except RecursionError:
        raise VaExportError("the file is nested too deep", where=where, fix=fix) from None
    except msgspec.ValidationError as error:
        match = _AT.fullmatch(str(error))
        message, path = match.groups() if match else (str(error), "")
    if missing := _MISSING.fullmatch(message):
        path = f"{path}.{missing[1]}".lstrip(".")
        raise VaExportError(f"{missing[1]} is missing", where=f"{where}: {path}", fix=fix)
    keys = path.split("[")[0].split(".")
    if message.startswith("Invalid enum value"):
        message = f"only {_choices(form, keys)} is supported"
    raise VaExportError(f"{keys[-1]} is {_shown(plain, keys)}: {message}", where=f"{where}: {path}", fix=fix)


def _plain(value: Any) -> Any:
    """4096.0 as 4096, which JSON does not tell apart (fields of real numbers take whole ones), and "?" for lone
    surrogates, which are no text."""
    if isinstance(value, dict):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53 else value


def _choices(form: type, keys: list[str]) -> str:
    """What the literal at `keys` may be."""
    kind: Any = form
    for key in keys:
        kind = next(
            (one for one in get_args(kind) if isinstance(one, type) and hasattr(one, "__struct_fields__")), kind
        )
        kind = get_type_hints(kind)[key]
    alternatives = [value for one in (kind, *get_args(kind)) for value in get_args(one)]
    return " or ".join(repr(value) for value in alternatives if not isinstance(value, type) and not get_args(value))


def _shown(plain: Any, keys: list[str]) -> str:
    for key in keys:
        plain = plain.get(key) if isinstance(plain, dict) else plain
    text = repr(plain)
    return text if len(text) <= 60 else f"{text[:57]}…"
