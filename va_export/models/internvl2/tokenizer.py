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
from va_export.models.checkpoint_tokenizer import CheckpointTokenizer, TokenizerLayout
from va_export.models.internvl2.prompt import prompt_tokens
from va_export.models.sentencepiece_bpe import VISIBLE_SPACE, build_tokenizer, read_model

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_PIECES_FILE = "tokenizer.model"
# Every published tokenizer of this family starts with these three pieces, which its code always treats as special.
_BASE_SPECIAL = ("<unk>", "<s>", "</s>")


def _from_pieces(path: Path, special: SpecialTokens) -> Tokenizer:
    model = read_model(path)
    added = {token.id: token for token in special.added}
    for number, piece in enumerate(model.pieces[: len(_BASE_SPECIAL)]):
        if piece.text in _BASE_SPECIAL:
            added.setdefault(number, AddedToken(number, piece.text))
    # Transformers' LlamaTokenizer takes a blank away where its text was given none (40B). InternLM2's own, which reads
    # the others, cleans up whatever it decodes, and no setting of its files keeps it from that.
    return build_tokenizer(
        model,
        list(added.values()),
        strips_first_blank=True if _is_llama(special) else None,
        prefixes_once=_prefixes_once(special),
        cleans_up=not _is_llama(special),
    )


def _is_llama(special: SpecialTokens) -> bool:
    return (special.tokenizer_class or "").startswith("LlamaTokenizer")


def _prefixes_once(special: SpecialTokens) -> bool:
    """Whether the files want what 4B's do, whose tokenizer puts the dummy prefix before the whole text only."""
    return _is_llama(special) and special.legacy is False


def prefix_ids(tokenizer: CheckpointTokenizer, template: str) -> tuple[int, ...]:
    """What follows the first id of a prompt of that template, and precedes its text's.

    4B's tokenizer puts the dummy prefix also before an added token that starts the text, and takes it back only if a
    file names that token (`pad_token`, `additional_special_tokens`). None names `<|system|>`: the original's prompts
    have a blank there that their text has not.
    """
    if tokenizer.fast is None or tokenizer.file is None or tokenizer.file.name != _PIECES_FILE:
        return ()
    alone = tokenizer.fast.token_to_id(VISIBLE_SPACE)
    starts_with = [token.content for token in tokenizer.special.added if template.startswith(token.content)]
    is_alone = _prefixes_once(tokenizer.special) and starts_with and not tokenizer.special.named & set(starts_with)
    return (alone,) if is_alone and alone is not None else ()


@cache
def layout(template: object, rows: int | None = None) -> TokenizerLayout:
    """How a checkpoint whose config.json has that template keeps its tokenizer.

    Args:
        rows: of the embedding, in transformers' layout only. Its processor wants a token `<video>`: the conversion
            script adds one to Qwen2.5-VL's tokenizer, beside the nine for which OpenGVLab's embedding has rows.
    """
    builders = {_PIECES_FILE: _from_pieces, byte_level_bpe.VOCABULARY_FILE: byte_level_bpe.from_qwen2_files}
    return TokenizerLayout(prompt_tokens(template), builders, (byte_level_bpe.MERGES_FILE,), rows)
