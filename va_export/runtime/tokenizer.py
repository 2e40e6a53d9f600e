"""Text ↔ ids with a bundle's `tokenizer.json`, and text from ids as they arrive."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from va_export.errors import VaExportError

TOKENIZER_FILE = "tokenizer.json"
_INCOMPLETE = "\ufffd"  # what a decoder gives for bytes that are not (yet) a character
_MAX_PENDING = 4  # a character has at most four bytes, so at most four ids; what is longer is no character


@contextlib.contextmanager
def tokenizer_errors(where: str | Path) -> Iterator[None]:
    """Around a call of the library: it raises bare Exceptions for what is wrong with a file, and some damage is only
    found when a text is encoded, by a panic, which derives from BaseException."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise VaExportError(
            f"the tokenizer cannot be read: {error}",
            where=where,
            fix="take the file from its source again, or bring `tokenizers` up to date",
        ) from error


class Tokenizer:
    """A tokenizer; make one with `load_tokenizer`.

    Attributes:
        unsettled: characters that the decoder may yet take away or put back, by what follows them.
        reach: how many characters later at the most.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.unsettled, self.reach = _replaced(tokenizer)

    @property
    def vocab_size(self) -> int:
        """Ids that it knows, added tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; special tokens that it spells are recognised, none are added."""
        with tokenizer_errors(TOKENIZER_FILE):
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out."""
        with tokenizer_errors(TOKENIZER_FILE):
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def text_of(self, token_id: int) -> str | None:
        """The token with that id, None if there is none."""
        token = self._tokenizer.id_to_token(token_id)
        return None if token is None else str(token)

    def token_id(self, token: str) -> int | None:
        """Id of a whole token, None if there is no such token."""
        number = self._tokenizer.token_to_id(token)
        return None if number is None else int(number)

    def stream(self) -> TextStream:
        """A fresh incremental decoder."""
        return TextStream(self)


class TextStream:
    """Turns ids into text one at a time: the pieces put together are `decode` of all ids.

    An id's text depends on its neighbours (spaces, characters spread over several ids), so each step decodes a short
    window of ids and gives what is new at its end; unfinished characters wait, and so does what the decoder may yet
    change.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []  # already decoded, kept so that the next ids are decoded in context
        self._pending: list[int] = []
        self._given = 0  # characters of the window's text that were given out

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes, possibly empty."""
        self._pending.append(token_id)
        text = self._tokenizer.decode(self._context + self._pending)
        is_complete = not text.endswith(_INCOMPLETE)
        if not is_complete and len(self._pending) < _MAX_PENDING:
            return ""
        end = max(self._given, self._settled(text)) if is_complete else len(text)
        piece, rest = text[self._given : end], text[end:]
        if not is_complete:  # broken bytes are no context
            self._given = len(self._tokenizer.decode(self._context))
        elif piece and len(alone := self._tokenizer.decode(self._pending)) > len(rest) and alone.endswith(rest):
            self._context, self._given = self._pending, len(alone) - len(rest)
        else:  # ids without text (a special token, a first space) add to the context, never replace it
            self._context, self._given = self._context + self._pending, end
        self._pending = []
        return piece

    def finish(self) -> str:
        """The text still held back, with replacement characters for what never became a character."""
        text = self._tokenizer.decode(self._context + self._pending)
        piece, self._given, self._pending = text[self._given :], len(text), []
        return piece

    def _settled(self, text: str) -> int:
        """How many characters further ones cannot change: `reach` characters before them are none of `unsettled`."""
        reach, end = self._tokenizer.reach, len(text)
        while (blank := max(text.rfind(one, max(0, end - reach), end) for one in self._tokenizer.unsettled)) >= 0:
            end = blank
        return end


def load_tokenizer(directory: Path | str) -> Tokenizer | None:
    """The tokenizer of a bundle (or checkpoint) directory, None if it has no tokenizer.json.

    Raises:
        VaExportError: the file cannot be read, or the package tokenizers is not installed.
    """
    path = Path(directory) / TOKENIZER_FILE
    if not path.is_file():
        return None
    try:
        import tokenizers
    except ImportError:
        raise VaExportError(
            "text prompts need the package tokenizers, which is not installed",
            where=path,
            fix="pip install tokenizers, or pass token ids",
        ) from None
    with tokenizer_errors(path):
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    # A file may say that texts are to be cut or padded; Transformers does so only where it is asked to.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return Tokenizer(tokenizer)


def _replaced(tokenizer: Any) -> tuple[str, int]:
    """See `Tokenizer`'s attributes: from what is replaced once the texts of all ids are one. All of it begins with a
    blank, and what ends with one too (" ' ") may have lost it before it was found."""
    decoder = tokenizer.decoder
    steps = json.loads(decoder.__getstate__()).get("decoders", []) if decoder is not None else []
    kinds = [step["type"] for step in steps]
    whole = steps[kinds.index("Fuse") :] if "Fuse" in kinds else []
    pairs = [(step["pattern"].get("String", ""), step["content"]) for step in whole if step["type"] == "Replace"]
    pairs = [(text, content) for text, content in pairs if text.startswith(" ")]
    ends = "".join(content[-1:] for text, content in pairs if text.endswith(" "))
    return " " + ends, max((len(text) - 1 for text, _ in pairs), default=0)
