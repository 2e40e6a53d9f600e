"""Qwen3's tokenizer where there is no `tokenizer.json`: byte-level, its added tokens in `tokenizer_config.json`."""

from __future__ import annotations

from va_export.models import byte_level_bpe
from va_export.models.checkpoint_tokenizer import TokenizerLayout
from va_export.models.qwen3_vl.prompt import PROMPT_TOKENS

LAYOUT = TokenizerLayout(
    PROMPT_TOKENS, {byte_level_bpe.VOCABULARY_FILE: byte_level_bpe.from_qwen2_files}, (byte_level_bpe.MERGES_FILE,)
)
