"""The original checkpoint's tokenizer as one `tokenizer.json`, made without its remote code.

Most checkpoints carry a SentencePiece `tokenizer.model`, 1B (Qwen2) a byte-level `vocab.json`; the prompt's own tokens
(`<|im_start|>`, `<IMG_CONTEXT>`, …) are listed in `tokenizer_config.json` and take the places of unused pieces or
follow the last one.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from va_export.checkpoint.files import read_json
from va_export.errors import VaExportError
from va_export.models import byte_level_bpe
from va_export.models.sentencepiece_bpe import AddedToken, build_tokenizer, read_model

TOKENIZER_FILE = "tokenizer.json"
_SENTENCEPIECE_FILE = "tokenizer.model"
# How Qwen2 cuts text before merging bytes: English contractions, words with what leads them, single digits, punctuation
# with its line breaks, white space (`pre_tokenizer` of Qwen/Qwen2-0.5B-Instruct's tokenizer.json).
_QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Every published tokenizer of this family starts with these three pieces, which its code always treats as special.
_BASE_SPECIAL = ("<unk>", "<s>", "</s>")


def write_tokenizer(source: Path, directory: Path) -> Path | None:
    """Write `tokenizer.json` for the checkpoint in `source` into `directory`; None if it has no tokenizer.

    Raises:
        VaExportError: the tokenizer files are damaged or do not belong together.
    """
    target = directory / TOKENIZER_FILE
    if (source / TOKENIZER_FILE).is_file():
        shutil.copyfile(source / TOKENIZER_FILE, target)
        return target
    if not (source / _SENTENCEPIECE_FILE).is_file():
        return _write_byte_level(source, target) if (source / byte_level_bpe.VOCABULARY_FILE).is_file() else None
    model = read_model(source / _SENTENCEPIECE_FILE)
    added = {token.id: token for token in added_tokens(source)}
    for number, piece in enumerate(model.pieces[: len(_BASE_SPECIAL)]):
        if piece.text in _BASE_SPECIAL:
            added.setdefault(number, AddedToken(number, piece.text))
    tokenizer = build_tokenizer(model, list(added.values()))
    tokenizer.save(str(target))
    return target


def _write_byte_level(source: Path, target: Path) -> Path:
    name = str(_settings(source).get("tokenizer_class", "Qwen2Tokenizer"))
    if not name.startswith("Qwen2Tokenizer"):
        raise VaExportError(
            f"the tokenizer class {name} over {byte_level_bpe.VOCABULARY_FILE} is not known",
            where=source,
            fix=f"provide a {TOKENIZER_FILE} beside it",
        )
    byte_level_bpe.build_tokenizer(source, _QWEN2_PATTERN, added_tokens(source)).save(str(target))
    return target


def added_tokens(directory: Path) -> list[AddedToken]:
    """The tokens that the checkpoint adds to its vocabulary, from the first file that lists any."""
    try:
        if listed := _settings(directory).get("added_tokens_decoder"):
            return [_added_token(int(number), entry) for number, entry in listed.items()]
        if (directory / "added_tokens.json").is_file():
            listed = read_json(directory / "added_tokens.json", what="list of added tokens")
            return [AddedToken(int(number), content) for content, number in listed.items()]
        if (directory / TOKENIZER_FILE).is_file():
            listed = read_json(directory / TOKENIZER_FILE, what="tokenizer").get("added_tokens", [])
            return [_added_token(int(entry["id"]), entry) for entry in listed]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise VaExportError(f"the list of added tokens is malformed: {error!r}", where=directory) from error
    return []


def adds_bos(directory: Path, default: bool) -> bool:
    """Whether a prompt starts with the beginning-of-sequence token: as the tokenizer's settings say, else `default`."""
    return bool(_settings(directory).get("add_bos_token", default))


def _settings(directory: Path) -> dict[str, Any]:
    """`tokenizer_config.json`, or nothing without that file."""
    path = directory / "tokenizer_config.json"
    return read_json(path, what="tokenizer configuration") if path.is_file() else {}


def _added_token(number: int, entry: dict[str, Any]) -> AddedToken:
    return AddedToken(
        number,
        entry["content"],
        special=bool(entry.get("special", True)),
        lstrip=bool(entry.get("lstrip", False)),
        rstrip=bool(entry.get("rstrip", False)),
    )
