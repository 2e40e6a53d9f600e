"""Whether a checkpoint in transformers' layout brings the chat template that our prompts are written after.

A template is a program, and a stranger's is not executed: it is told from the published one by its SHA-256. The two
texts known are those in transformers' `convert_internvl_weights_to_hf.py`, where images are `<image>` in the first
version and `<IMG_CONTEXT>` later; OpenGVLab's own script for InternVL3.5 writes the latter. Both treat videos alike.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from va_export.checkpoint.chat_templates import chat_templates
from va_export.checkpoint.special_tokens import Note

_PUBLISHED = (
    "b3e3fa7cdeceec1d3dfe0d17b77724baf3857714e688f3a700261567e96140eb",
    "cabb34545cf3d04f4d256439f6b8e9f6fcf61edaaee3b8cb5c0937a7ea6206d7",
)


def note_another(directory: Path, note: Note) -> None:
    """Tell `note` of a chat template in `directory` that is none of the published ones.

    Raises:
        VaExportError: a file that may hold one is damaged.
    """
    for name, text in chat_templates(directory).items():
        if hashlib.sha256(text.strip().encode("utf-8", "replace")).hexdigest() not in _PUBLISHED:
            note(f"the chat template in {name} is another than the published one: prompts follow the published one.")
