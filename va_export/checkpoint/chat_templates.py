"""The chat templates that a checkpoint brings, as text. A template is a program, and a stranger's is not executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from va_export.checkpoint.json_files import read_form
from va_export.checkpoint.special_tokens import SETTINGS_FILE
from va_export.errors import VaExportError

TEMPLATE_FILE, PROCESSOR_FILE = "chat_template.jinja", "chat_template.json"


class _Settings(msgspec.Struct, frozen=True):
    chat_template: Any = None


def chat_templates(directory: Path) -> dict[str, str]:
    """File → its template, line breaks written out; "" for a file that has several, by name.

    Raises:
        VaExportError: a file that may hold one is damaged.
    """
    found = {}
    if (path := directory / TEMPLATE_FILE).is_file():
        try:
            found[TEMPLATE_FILE] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise VaExportError(
                f"the chat template cannot be read: {error}", where=path, fix="download it again"
            ) from error
    for name in (PROCESSOR_FILE, SETTINGS_FILE):
        said = read_form(directory / name, _Settings, what="chat template").chat_template
        if said is not None:
            found[name] = said if isinstance(said, str) else ""
    return {name: text.replace("\\n", "\n") for name, text in found.items()}
