"""A checkpoint's own `tokenizer.json`, as Transformers uses it.

Transformers cuts and pads a text only where it is asked to, whatever the file says; drops no merges; and takes added
tokens, and how they are cut out of text, from the files beside it too.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from va_export.checkpoint.special_tokens import AddedToken, Note, add_tokens
from va_export.runtime.tokenizer import TOKENIZER_FILE, tokenizer_errors

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def open_tokenizer(path: Path, added: Iterable[AddedToken], note: Note) -> Tokenizer:
    """The tokenizer in `path`, with the tokens `added` by other files.

    Args:
        note: is told what of the file is not followed.

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
    add_tokens(tokenizer, added, path)
    return tokenizer


def surrounding_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer itself puts before and after a text."""
    with tokenizer_errors(TOKENIZER_FILE):
        bare = tokenizer.encode("a", add_special_tokens=False).ids
        whole = tokenizer.encode("a", add_special_tokens=True).ids
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return whole, []
