"""The original checkpoints' tokenizers.

Most carry a SentencePiece `tokenizer.model`, 1B (Qwen2) a byte-level `vocab.json`; the prompt's own tokens
(`<|im_start|>`, `<IMG_CONTEXT>`, …) are listed in `tokenizer_config.json` and take the places of unused pieces or
follow the last one.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from va_export.checkpoint.special_tokens import AddedToken, SpecialTokens
from va_export.models import byte_level_bpe
from va_export.models.checkpoint_tokenizer import TokenizerLayout
from va_export.models.internvl2.prompt import prompt_tokens
from va_export.models.sentencepiece_bpe import build_tokenizer, read_model

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Every published tokenizer of this family starts with these three pieces, which its code always treats as special.
_BASE_SPECIAL = ("<unk>", "<s>", "</s>")


def _from_pieces(path: Path, special: SpecialTokens) -> Tokenizer:
    model = read_model(path)
    added = {token.id: token for token in special.added}
    for number, piece in enumerate(model.pieces[: len(_BASE_SPECIAL)]):
        if piece.text in _BASE_SPECIAL:
            added.setdefault(number, AddedToken(number, piece.text))
    # Transformers' LlamaTokenizer takes a blank away where its text was given none (40B).
    strips = True if (special.tokenizer_class or "").startswith("LlamaTokenizer") else None
    return build_tokenizer(model, list(added.values()), strips)


@cache
def layout(template: object) -> TokenizerLayout:
    """How a checkpoint whose config.json has that template keeps its tokenizer."""
    builders = {"tokenizer.model": _from_pieces, byte_level_bpe.VOCABULARY_FILE: byte_level_bpe.from_qwen2_files}
    return TokenizerLayout(prompt_tokens(template), builders, (byte_level_bpe.MERGES_FILE,))
