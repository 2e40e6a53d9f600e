"""The JSON files beside a checkpoint's weights: others wrote them, so only what is read of them must have a form."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from msgspec import inspect

from va_export.documents import convert, parse
from va_export.errors import VaExportError

INDEX_FILE = "model.safetensors.index.json"  # which file has which tensor

_Form = TypeVar("_Form")


def read_json(path: Path, *, what: str) -> dict[str, Any]:
    """Read a JSON object, or say which file is missing or broken; `what` names its role."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise VaExportError(f"the {what} is missing", where=path, fix="complete the checkpoint directory") from None
    except OSError as error:
        raise VaExportError(
            f"the {what} cannot be read: {error.strerror}", where=path, fix="check its permissions and the disk"
        ) from error
    content = parse(raw, what=f"the {what}", where=path, fix="download it again")
    if not isinstance(content, dict):
        raise VaExportError(
            f"the {what} is a JSON {type(content).__name__}, not an object", where=path, fix="download it again"
        )
    return content


def read_form(path: Path, form: type[_Form], *, what: str) -> _Form:
    """`read_json`, in a form; the form's defaults where there is no such file."""
    return as_form(read_json(path, what=what) if path.is_file() else {}, form, what=what, where=path)


def as_form(content: dict[str, Any], form: type[_Form], *, what: str, where: Path | str) -> _Form:
    """What of plain data a form declares; other keys may hold anything.

    Raises:
        VaExportError: a key is missing or holds what it must not; `where` names it, as `FILE: section.key`.
    """
    declared = _declared(content, inspect.type_info(form))
    return convert(declared, form, what=f"the {what}", where=where, fix="take this file from the original checkpoint")


def _declared(value: Any, kind: inspect.Type) -> Any:
    """`value` without the keys that its type does not declare, and 4096.0 as 4096, which JSON does not tell apart:
    fields of real numbers take whole ones."""
    if isinstance(kind, inspect.Metadata):
        return _declared(value, kind.type)
    if isinstance(kind, inspect.UnionType):
        wanted = inspect.StructType | inspect.DictType if isinstance(value, dict) else inspect.ListType
        kind = next((one for one in kind.types if isinstance(one, wanted)), kind)
    if isinstance(kind, inspect.StructType) and isinstance(value, dict):
        fields = [field for field in kind.fields if field.encode_name in value]
        return {field.encode_name: _declared(value[field.encode_name], field.type) for field in fields}
    if isinstance(kind, inspect.DictType) and isinstance(value, dict):
        return {key: _declared(entry, kind.value_type) for key, entry in value.items()}
    if isinstance(kind, inspect.ListType) and isinstance(value, list):
        return [_declared(entry, kind.item_type) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53 else value
