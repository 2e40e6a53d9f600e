"""The original checkpoint's tokenizer as one `tokenizer.json`, made without its remote code, and the ids of prompts.

Most checkpoints carry a SentencePiece `tokenizer.model`, 1B (Qwen2) a byte-level `vocab.json`; the prompt's own tokens
(`<|im_start|>`, `<IMG_CONTEXT>`, …) are listed in `tokenizer_config.json` and take the places of unused pieces or
follow the last one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from va_export.checkpoint.special_tokens import (
    ADDED_FILE,
    GENERATION_FILE,
    MAP_FILE,
    SETTINGS_FILE,
    TOKENIZER_FILE,
    AddedToken,
    Note,
    SpecialTokens,
    read_special_tokens,
)
from va_export.errors import VaExportError
from va_export.models import byte_level_bpe
from va_export.models.internvl2.prompt import END_OF_TURN, IMAGE_TOKEN, PROMPT_TOKENS
from va_export.models.sentencepiece_bpe import build_tokenizer, read_model
from va_export.models.tokenizer_json import open_tokenizer, surrounding_tokens
from va_export.runtime.tokenizer import tokenizer_errors

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SENTENCEPIECE_FILE = "tokenizer.model"
# How Qwen2 cuts text before merging bytes: English contractions, words with what leads them, single digits, punctuation
# with its line breaks, white space (`pre_tokenizer` of Qwen/Qwen2-0.5B-Instruct's tokenizer.json).
_QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Every published tokenizer of this family starts with these three pieces, which its code always treats as special.
_BASE_SPECIAL = ("<unk>", "<s>", "</s>")
_FILES = (
    TOKENIZER_FILE, _SENTENCEPIECE_FILE, byte_level_bpe.VOCABULARY_FILE, byte_level_bpe.MERGES_FILE,
    SETTINGS_FILE, ADDED_FILE, MAP_FILE, GENERATION_FILE,
)  # fmt: skip
_FIX = "take config.json and all files of the tokenizer from one checkpoint"


@dataclass(frozen=True)
class CheckpointTokenizer:
    """What a checkpoint's tokenizer files come to.

    Attributes:
        file: the file that the vocabulary comes from; None without a tokenizer.
        fast: the tokenizer; None without one.
        special: what the files say of special tokens.
        notes: what of the files is not followed, or contradicts another.
    """

    file: Path | None
    fast: Tokenizer | None
    special: SpecialTokens
    notes: tuple[str, ...]

    def id_of(self, content: str | None) -> int | None:
        """Id of a whole token, None if there is none."""
        if content is None or self.fast is None:
            return self.special.id_of(content)
        number = self.fast.token_to_id(content)
        return None if number is None else int(number)

    @property
    def image_token_id(self) -> int | None:
        """The placeholder's id."""
        return self.id_of(IMAGE_TOKEN)

    @property
    def end_of_turn_id(self) -> int | None:
        """The id that ends an answer as the chat template has it."""
        return self.id_of(END_OF_TURN)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Further ids that end an answer: `generation_config.json`'s, and the tokenizer's own end of text."""
        end = self.id_of(self.special.eos_token)
        return (*self.special.stop_ids, *(() if end is None else (end,)))

    def check(self, vocab_size: int, image_token_id: int | None) -> None:
        """Hold the tokenizer against the model.

        Raises:
            VaExportError: ids beyond the vocabulary, or a token of the prompt that is none.
        """
        for number in self.special.stop_ids:
            if number >= vocab_size:
                raise VaExportError(
                    f"the end of an answer, {number}, is outside the vocabulary of {vocab_size}",
                    where=f"{GENERATION_FILE}: eos_token_id",
                    fix=_FIX,
                )
        if self.fast is None:
            return
        text, last = max(self.fast.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
        if last >= vocab_size:
            raise VaExportError(
                f"the tokenizer's token {text!r} has the id {last}; the model's vocabulary ends at {vocab_size - 1}",
                where=self.file or "tokenizer.json",
                fix=f"{_FIX}: a text that spells this token would have an id that the model does not know",
            )
        for token in PROMPT_TOKENS:
            with tokenizer_errors(self.file or TOKENIZER_FILE):
                ids = self.fast.encode(token, add_special_tokens=False).ids
            if len(ids) != 1:
                raise VaExportError(
                    f"{token}, of which prompts are made, is no token of this tokenizer: it is spelled in {len(ids)}",
                    where=self.file or "tokenizer.json",
                    fix=_FIX,
                )
        if image_token_id not in (None, self.image_token_id):
            raise VaExportError(
                f"the image token is said to be {image_token_id}, the tokenizer spells {IMAGE_TOKEN} as"
                f" {self.image_token_id}",
                where="image_token_id",
                fix="leave --image-token-id out: it is for checkpoints without a tokenizer",
            )

    def first_id(self, default: bool, config_bos: int | None, note: Note) -> int | None:
        """The id that every prompt starts with, None for none.

        `add_bos_token` in `tokenizer_config.json` decides, else a `tokenizer.json`'s own rule, else the decoder's
        `default`.

        Args:
            config_bos: `bos_token_id` of config.json, for checkpoints whose tokenizer names none.
            note: is told where the files disagree.

        Raises:
            VaExportError: the tokenizer puts more around a text than one token before it, or it is not known which.
        """
        if self.special.add_eos_token:
            raise VaExportError(
                "the tokenizer would end every prompt with the token that ends an answer",
                where=f"{SETTINGS_FILE}: add_eos_token",
                fix="set it to false: a prompt must stay open for its answer",
            )
        stated, own = self.special.add_bos_token, self.id_of(self.special.bos_token)
        if self.fast is not None and self.file is not None and self.file.name == TOKENIZER_FILE:
            before, after = surrounding_tokens(self.fast)
            if stated is None and (after or len(before) > 1):
                raise VaExportError(
                    f"the tokenizer puts the ids {before} before a text and {after} behind it, not one token before it",
                    where=self.file or "tokenizer.json",
                    fix="correct its post_processor, or say add_bos_token in tokenizer_config.json",
                )
            default = bool(before)
            own = before[0] if len(before) == 1 else own
            if stated not in (None, default):
                note(f"add_bos_token is {stated} in {SETTINGS_FILE}, {TOKENIZER_FILE} does otherwise: "
                     f"{SETTINGS_FILE} is followed.")  # fmt: skip
        if not (default if stated is None else stated):
            return None
        if own is None:
            own = config_bos
        elif config_bos not in (None, own):
            note(f"prompts start with {own}, as the tokenizer has it; config.json's bos_token_id is {config_bos}.")
        if own is None and self.fast is not None:
            raise VaExportError(
                "prompts start with a token that no file names", where=f"{SETTINGS_FILE}: bos_token", fix=_FIX
            )
        return own


def read_tokenizer(source: Path) -> CheckpointTokenizer:
    """Read the tokenizer files of the checkpoint in `source`.

    Raises:
        VaExportError: the files are damaged or do not belong together.
    """
    stats = [(name, (source / name).stat()) for name in _FILES if (source / name).is_file()]
    return _read(source, tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))


def write_tokenizer(source: Path, directory: Path) -> Path | None:
    """Write `tokenizer.json` for the checkpoint in `source` into `directory`; None if it has no tokenizer.

    Raises:
        VaExportError: the files are damaged or do not belong together.
    """
    fast = read_tokenizer(source).fast
    if fast is None:
        return None
    target = directory / TOKENIZER_FILE
    fast.save(str(target))
    return target


@lru_cache(maxsize=1)  # building one takes seconds, and an export asks three times
def _read(directory: Path, _: tuple[tuple[str, int, int], ...]) -> CheckpointTokenizer:
    notes: list[str] = []
    special = read_special_tokens(directory, PROMPT_TOKENS, notes.append)
    file = next((directory / name for name in _FILES[:3] if (directory / name).is_file()), None)
    if file is None:
        fast = None
    elif file.name == TOKENIZER_FILE:
        fast = open_tokenizer(file, special.added, notes.append)
    elif file.name == _SENTENCEPIECE_FILE:
        fast = _from_pieces(file, special)
    else:
        fast = _from_bytes(directory, special)
    return CheckpointTokenizer(file, fast, special, tuple(notes))


def _from_pieces(path: Path, special: SpecialTokens) -> Tokenizer:
    model = read_model(path)
    added = {token.id: token for token in special.added}
    for number, piece in enumerate(model.pieces[: len(_BASE_SPECIAL)]):
        if piece.text in _BASE_SPECIAL:
            added.setdefault(number, AddedToken(number, piece.text))
    # Transformers' LlamaTokenizer takes a blank away where its text was given none (40B).
    strips = True if (special.tokenizer_class or "").startswith("LlamaTokenizer") else None
    return build_tokenizer(model, list(added.values()), strips)


def _from_bytes(directory: Path, special: SpecialTokens) -> Tokenizer:
    name = special.tokenizer_class or "Qwen2Tokenizer"
    if not name.startswith("Qwen2Tokenizer"):
        raise VaExportError(
            f"the tokenizer class {name} over {byte_level_bpe.VOCABULARY_FILE} is not known",
            where=directory,
            fix=f"provide a {TOKENIZER_FILE} beside it",
        )
    return byte_level_bpe.build_tokenizer(directory, _QWEN2_PATTERN, special.added)
