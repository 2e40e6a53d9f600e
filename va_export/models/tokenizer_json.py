"""A checkpoint's own `tokenizer.json`, as Transformers uses it.

Transformers cuts and pads a text only where it is asked to, whatever the file says; drops no merges; and takes added
tokens, and how they are cut out of text, from the files beside it too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from va_export.checkpoint.special_tokens import AddedToken, Note, add_tokens
from va_export.runtime.tokenizer import TOKENIZER_FILE, tokenizer_errors

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SHOWN = 6


def open_tokenizer(path: Path, added: Iterable[AddedToken], note: Note, rows: int | None = None) -> Tokenizer:
    """The tokenizer in `path`, with the tokens `added` by other files.

    Args:
        note: is told what of the file is not followed.
        rows: of the model's embedding; added tokens beyond them are left out. None: all are kept.

    Raises:
        VaExportError: the file cannot be read, or an added token would get another id.
    """
    import tokenizers

    with tokenizer_errors(path):
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    if tokenizer.truncation is not None:
        note(f"{path.name} cuts texts after {tokenizer.truncation['max_length']} tokens: left out, prompts stay whole.")
        tokenizer.no_truncation()
    if tokenizer.padding is not None:
        note(f"{path.name} pads texts: left out, prompts stay as long as they are.")
        tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):
        note(f"{path.name} drops merges at random, which is for training: left out.")
        tokenizer.model.dropout = None
    if rows is not None:
        tokenizer = _cut(tokenizer, path, rows, note)
        added = [token for token in added if token.id < rows]
    add_tokens(tokenizer, added, path)
    return tokenizer


def _cut(tokenizer: Tokenizer, path: Path, rows: int, note: Note) -> Tokenizer:
    """The tokenizer without the added tokens that the model has no row for: a text that spells one is taken apart."""
    import tokenizers

    content = json.loads(tokenizer.to_str())
    beyond = [token["content"] for token in content["added_tokens"] if token["id"] >= rows]
    if not beyond:
        return tokenizer
    note(f"{path.name} has added tokens that the model has no row for ({', '.join(beyond[:_SHOWN])}): left out.")
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < rows]
    with tokenizer_errors(path):
        return tokenizers.Tokenizer.from_str(json.dumps(content))


def surrounding_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer itself puts before and after a text."""
    with tokenizer_errors(TOKENIZER_FILE):
        bare = tokenizer.encode("a", add_special_tokens=False).ids
        whole = tokenizer.encode("a", add_special_tokens=True).ids
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return whole, []
