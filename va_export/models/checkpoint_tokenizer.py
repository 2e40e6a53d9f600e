"""A checkpoint's tokenizer, from whichever files it has, and the ids that it gives to prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    Note,
    SpecialTokens,
    read_special_tokens,
)
from va_export.errors import VaExportError
from va_export.models.tokenizer_json import open_tokenizer, surrounding_tokens
from va_export.runtime.tokenizer import tokenizer_errors

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_FIX = "take config.json and all files of the tokenizer from one checkpoint"


@dataclass(frozen=True)
class PromptTokens:
    """Tokens that a family's prompts are made of.

    Attributes:
        image: the placeholder that a visual token of a video replaces; None where it is no token.
        end_of_turn: what ends an answer as the chat template has it.
        others: further ones.
    """

    image: str | None
    end_of_turn: str
    others: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """Every one of them."""
        return (*self.others, *(() if self.image is None else (self.image,)), self.end_of_turn)


@dataclass(frozen=True, eq=False)
class TokenizerLayout:
    """How a family's checkpoints keep a tokenizer where they have no `tokenizer.json`.

    Attributes:
        prompt: the tokens that prompts are made of.
        builders: the file that tells → what makes a tokenizer of it and its neighbours; the first that is there.
        files: further files that those read.
        rows: of the model's embedding, where a `tokenizer.json` may have added tokens beyond them that the model's own
            processor replaces before it asks the model; they are left out. None: none are expected.
    """

    prompt: PromptTokens
    builders: Mapping[str, Callable[[Path, SpecialTokens], Tokenizer]]
    files: tuple[str, ...] = ()
    rows: int | None = None


@dataclass(frozen=True)
class CheckpointTokenizer:
    """What a checkpoint's tokenizer files come to.

    Attributes:
        prompt: the tokens that prompts are made of.
        file: the file that the vocabulary comes from; None without a tokenizer.
        fast: the tokenizer; None without one.
        special: what the files say of special tokens.
        notes: what of the files is not followed, or contradicts another.
    """

    prompt: PromptTokens
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
        return self.id_of(self.prompt.image)

    @property
    def end_of_turn_id(self) -> int | None:
        """The id that ends an answer as the chat template has it."""
        return self.id_of(self.prompt.end_of_turn)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Further ids that end an answer: `generation_config.json`'s, and the tokenizer's own end of text."""
        end = self.id_of(self.special.eos_token)
        return (*self.special.stop_ids, *(() if end is None else (end,)))

    @property
    def all_stop_ids(self) -> tuple[int, ...]:
        """`stop_ids` and the end of a turn."""
        return (*self.stop_ids, *(() if self.end_of_turn_id is None else (self.end_of_turn_id,)))

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
        for token in self.prompt.all:
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
                f"the image token is said to be {image_token_id}, the tokenizer spells {self.prompt.image} as"
                f" {self.image_token_id}",
                where="image_token_id",
                fix="leave --image-token-id out: it is for checkpoints without a tokenizer",
            )

    def check_id(self, token: str, number: int, where: str) -> None:
        """Hold the tokenizer against an id that the configuration gives.

        Raises:
            VaExportError: it spells the token otherwise.
        """
        if self.fast is not None and self.id_of(token) != number:
            raise VaExportError(
                f"{where} is {number}, the tokenizer spells {token} as {self.id_of(token)}",
                where=f"config.json: {where}",
                fix=_FIX,
            )

    def first_id(self, default: bool, config_bos: int | None, note: Note) -> int | None:
        """The id that every prompt starts with, None for none.

        A `tokenizer.json`'s own rule decides, as in Transformers 5, which then does not look at `add_bos_token`; else
        `add_bos_token` in `tokenizer_config.json`, else the decoder's `default`.

        Args:
            config_bos: `bos_token_id` of config.json, for checkpoints whose tokenizer names none.
            note: is told where the files disagree.

        Raises:
            VaExportError: the tokenizer puts more around a text than one token before it, or it is not known which.
        """
        stated, own = self.special.add_bos_token, self.id_of(self.special.bos_token)
        is_whole = self.fast is not None and self.file is not None and self.file.name == TOKENIZER_FILE
        if self.special.add_eos_token and not is_whole:
            raise VaExportError(
                "the tokenizer would end every prompt with the token that ends an answer",
                where=f"{SETTINGS_FILE}: add_eos_token",
                fix="set it to false: a prompt must stay open for its answer",
            )
        if is_whole:
            assert self.fast is not None
            before, after = surrounding_tokens(self.fast)
            if after or len(before) > 1:
                raise VaExportError(
                    f"the tokenizer puts the ids {before} before a text and {after} behind it, not one token before it",
                    where=self.file or TOKENIZER_FILE,
                    fix="correct its post_processor",
                )
            default = bool(before)
            own = before[0] if before else own
            if stated not in (None, default):
                note(f"add_bos_token is {stated} in {SETTINGS_FILE}, {TOKENIZER_FILE} does otherwise and is followed.")
            stated = None
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


def read_tokenizer(source: Path, layout: TokenizerLayout) -> CheckpointTokenizer:
    """Read the tokenizer files of the checkpoint in `source`.

    Raises:
        VaExportError: the files are damaged or do not belong together.
    """
    names = (TOKENIZER_FILE, *layout.builders, *layout.files, SETTINGS_FILE, ADDED_FILE, MAP_FILE, GENERATION_FILE)
    stats = [(name, (source / name).stat()) for name in names if (source / name).is_file()]
    return _read(source, layout, tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))


def write_tokenizer(source: Path, layout: TokenizerLayout, directory: Path) -> Path | None:
    """Write `tokenizer.json` for the checkpoint in `source` into `directory`; None if it has no tokenizer.

    Raises:
        VaExportError: the files are damaged or do not belong together.
    """
    fast = read_tokenizer(source, layout).fast
    if fast is None:
        return None
    target = directory / TOKENIZER_FILE
    fast.save(str(target))
    return target


@lru_cache(maxsize=1)  # building one takes seconds, and an export asks three times
def _read(directory: Path, layout: TokenizerLayout, _: tuple[tuple[str, int, int], ...]) -> CheckpointTokenizer:
    notes: list[str] = []
    special = read_special_tokens(directory, layout.prompt.all, notes.append)
    file = next((directory / name for name in (TOKENIZER_FILE, *layout.builders) if (directory / name).is_file()), None)
    if file is None:
        fast = None
    elif file.name == TOKENIZER_FILE:
        fast = open_tokenizer(file, special.added, notes.append, layout.rows)
    else:
        fast = layout.builders[file.name](file, special)
    return CheckpointTokenizer(layout.prompt, file, fast, special, tuple(notes))
