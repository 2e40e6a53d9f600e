"""Whether a checkpoint in transformers' layout brings the chat template that our prompts are written after.

A template is a program, and a stranger's is not executed: it is told from the published one by its SHA-256. The two
texts known are those in transformers' `convert_internvl_weights_to_hf.py`, where images are `<image>` in the first
version and `<IMG_CONTEXT>` later; OpenGVLab's own script for InternVL3.5 writes the latter. Both treat videos alike.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from va_export.checkpoint.json_files import read_form
from va_export.checkpoint.special_tokens import SETTINGS_FILE, Note
from va_export.errors import VaExportError

TEMPLATE_FILE, PROCESSOR_FILE = "chat_template.jinja", "chat_template.json"
_PUBLISHED = (
    "b3e3fa7cdeceec1d3dfe0d17b77724baf3857714e688f3a700261567e96140eb",
    "cabb34545cf3d04f4d256439f6b8e9f6fcf61edaaee3b8cb5c0937a7ea6206d7",
)


class _Settings(msgspec.Struct, frozen=True):
    chat_template: Any = None


def note_another(directory: Path, note: Note) -> None:
    """Tell `note` of a chat template in `directory` that is none of the published ones.

    Raises:
        VaExportError: a file that may hold one is damaged.
    """
    for name, text in _templates(directory).items():
        content = text.strip().replace("\\n", "\n").encode("utf-8", "replace")
        if hashlib.sha256(content).hexdigest() not in _PUBLISHED:
            note(f"the chat template in {name} is another than the published one: prompts follow the published one.")


def _templates(directory: Path) -> dict[str, str]:
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
            found[name] = said if isinstance(said, str) else ""  # several templates, by name: none is the published one
    return found
