"""Qwen2's tokenizer where there is no `tokenizer.json`."""

from __future__ import annotations

from functools import cache

from va_export.models import byte_level_bpe
from va_export.models.checkpoint_tokenizer import TokenizerLayout
from va_export.models.llava.prompt import prompt_tokens


@cache
def layout(*, is_original: bool) -> TokenizerLayout:
    """How a checkpoint of either layout keeps its tokenizer."""
    builders = {byte_level_bpe.VOCABULARY_FILE: byte_level_bpe.from_qwen2_files}
    return TokenizerLayout(prompt_tokens(is_original=is_original), builders, (byte_level_bpe.MERGES_FILE,))
