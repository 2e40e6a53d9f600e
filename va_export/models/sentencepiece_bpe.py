"""A SentencePiece BPE model (`tokenizer.model`) → a `tokenizers.Tokenizer` with the same ids.

SentencePiece merges, again and again, the two neighbours whose concatenation is the best-scored piece. The tokenizers
library wants that as a list of pairs in order: every way to split a piece into two pieces, at the piece's score. The
model file is a protocol buffer; the handful of fields needed are read here, so that no protobuf runtime is.

Field numbers: google/sentencepiece, `src/sentencepiece_model.proto`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

from va_export.checkpoint.special_tokens import AddedToken, add_tokens
from va_export.documents import is_lfs_pointer
from va_export.errors import VaExportError

if TYPE_CHECKING:
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers

VISIBLE_SPACE = "▁"  # SentencePiece's visible space, U+2581
_MODEL_TYPE_BPE = 2
# What Transformers' `clean_up_tokenization` replaces, in its order.
_CLEAN_UP = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
)


class PieceType(IntEnum):
    """`SentencePiece.Type` of the proto."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Piece:
    """One row of the vocabulary; its id is its place in the list."""

    text: str
    score: float
    type: PieceType


@dataclass(frozen=True)
class SentencePieceModel:
    """What of a `tokenizer.model` decides the ids."""

    pieces: tuple[Piece, ...]
    byte_fallback: bool
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool


def read_model(path: Path) -> SentencePieceModel:
    """Parse a `tokenizer.model`.

    Raises:
        VaExportError: not a SentencePiece model, or not a BPE one.
    """
    try:
        content = path.read_bytes()
        if is_lfs_pointer(content):
            raise VaExportError("this is a pointer of Git LFS, not the file itself", where=path, fix="git lfs pull")
        fields = _fields(content)
        pieces = tuple(_piece(_single(value)) for value in fields[1])
        trainer = {number: values[-1] for number, values in _fields(_single(fields[2][-1])).items()}
        normalizer = {number: values[-1] for number, values in _fields(_single(fields[3][-1])).items()}
    except (OSError, ValueError, KeyError, IndexError, struct.error) as error:
        raise VaExportError(
            f"not a SentencePiece model: {error}", where=path, fix="download tokenizer.model again"
        ) from error
    if trainer.get(3, 1) != _MODEL_TYPE_BPE:
        raise VaExportError(
            f"the SentencePiece model is of type {trainer.get(3, 1)!r}, not BPE (2)",
            where=path,
            fix="provide a tokenizer.json beside it",
        )
    behind, visible = bool(trainer.get(24, 0)), bool(normalizer.get(5, 1))
    if behind or not visible:
        raise VaExportError(
            f"the SentencePiece model is one with treat_whitespace_as_suffix {behind} and escape_whitespaces {visible};"
            " only one with False and True is read",
            where=path,
            fix="provide a tokenizer.json beside it",
        )
    numbers: dict[str, int] = {}
    for number, piece in enumerate(pieces):
        if not piece.text or numbers.setdefault(piece.text, number) != number:
            said = f"is that of {numbers[piece.text]} again, {piece.text!r}" if piece.text else "is empty"
            raise VaExportError(f"piece {number} {said}", where=path, fix="download tokenizer.model again")
    charsmap = normalizer.get(2, b"")
    return SentencePieceModel(
        pieces=pieces,
        byte_fallback=bool(trainer.get(35, 0)),
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
    )


def build_tokenizer(
    model: SentencePieceModel,
    added: Sequence[AddedToken],
    strips_first_blank: bool | None = None,
    prefixes_once: bool = False,
    cleans_up: bool = False,
) -> Tokenizer:
    """The equivalent fast tokenizer.

    Args:
        strips_first_blank: whether decoded text loses a blank at its start; None: where the model put one there.
        prefixes_once: the dummy prefix stands where the whole text starts, and not also behind each added token: what
            Transformers' LlamaTokenizer calls `legacy: false`.
        cleans_up: decoded text loses blanks before punctuation, as Transformers' `clean_up_tokenization` has it.

    An added token with the id of a piece takes the piece's place. Text between added tokens is tokenized on its own, as
    Hugging Face's tokenizers over SentencePiece do. One difference remains: with a dummy prefix, text after a
    user-defined piece is prefixed again.

    Raises:
        VaExportError: the ids of the added tokens leave gaps after the pieces.
    """
    import tokenizers

    texts = [piece.text for piece in model.pieces]
    types = [piece.type for piece in model.pieces]
    for token in added:
        if token.id < len(texts):
            texts[token.id], types[token.id] = token.content, PieceType.CONTROL
    vocabulary = {text: number for number, text in enumerate(texts)}
    mergeable = {text: number for text, number in vocabulary.items() if types[number] == PieceType.NORMAL}
    unknown = next((text for text, kind in zip(texts, types, strict=True) if kind == PieceType.UNKNOWN), None)
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab=vocabulary,
            merges=_merges(mergeable, [piece.score for piece in model.pieces]),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=model.byte_fallback,
        )
    )
    tokenizer.normalizer = _normalizer(model, prefix=model.add_dummy_prefix and not prefixes_once)
    if model.add_dummy_prefix and prefixes_once:
        tokenizer.pre_tokenizer = _first_prefix()
    strips = model.add_dummy_prefix if strips_first_blank is None else strips_first_blank
    tokenizer.decoder = _decoder(strips, cleans_up)
    # SentencePiece finds user-defined pieces in the normalized text, where blanks are visible. A dummy prefix would be
    # put before the pieces themselves: there the text as it is must do.
    user_defined = [
        AddedToken(number, text, special=False, normalized=not model.add_dummy_prefix)
        for number, (text, kind) in enumerate(zip(texts, types, strict=True))
        if kind == PieceType.USER_DEFINED
    ]
    add_tokens(tokenizer, [*added, *user_defined], "tokenizer.model")
    return tokenizer


def _merges(mergeable: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """All splits of all pieces into two pieces, best score first."""
    ranked: list[tuple[float, int, int, str, str]] = []
    for text, number in mergeable.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in mergeable and right in mergeable:
                ranked.append((-scores[number], number, -cut, left, right))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]


def _normalizer(model: SentencePieceModel, prefix: bool) -> normalizers.Normalizer:
    from tokenizers import Regex, normalizers

    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        try:
            steps.append(normalizers.Precompiled(model.charsmap))
        except Exception as error:  # the library raises bare Exception
            raise VaExportError(
                f"the table of normal forms is damaged: {error}",
                where="tokenizer.model",
                fix="download tokenizer.model again",
            ) from error
    if model.remove_extra_whitespaces:
        # \A and \z: of the text, not of a line in it.
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if prefix:
        steps.append(normalizers.Prepend(VISIBLE_SPACE))
    steps.append(normalizers.Replace(" ", VISIBLE_SPACE))
    return normalizers.Sequence(steps)


def _first_prefix() -> pre_tokenizers.PreTokenizer:
    """Only a pre-tokenizer knows where the whole text starts. Metaspace adds no prefix to a text that starts with its
    replacement, and SentencePiece adds one all the same: so the first looks for blanks, which the normalizer left none
    of, and the second makes the one blank that the first put there a visible one."""
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False),
            pre_tokenizers.Metaspace(replacement=VISIBLE_SPACE, prepend_scheme="never", split=False),
        ]
    )


def _decoder(strips_first_blank: bool, cleans_up: bool) -> decoders.Decoder:
    from tokenizers import decoders

    steps: list[decoders.Decoder] = [decoders.Replace(VISIBLE_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if strips_first_blank:
        steps.append(decoders.Strip(content=" ", left=1))
    if cleans_up:
        steps += [decoders.Replace(*replacement) for replacement in _CLEAN_UP]
    return decoders.Sequence(steps)


def _piece(message: bytes) -> Piece:
    fields = {number: values[-1] for number, values in _fields(message).items()}
    score = fields.get(2, b"\0\0\0\0")
    kind = fields.get(3, PieceType.NORMAL)
    if not isinstance(score, bytes) or not isinstance(kind, int):
        raise ValueError("a piece is malformed")
    return Piece(_single(fields[1]).decode("utf-8"), struct.unpack("<f", score)[0], PieceType(kind))


def _single(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number stands where a message belongs")
    return value


def _fields(message: bytes) -> dict[int, list[int | bytes]]:
    """A protobuf message's fields by number; numbers decoded as varints, everything else left as bytes."""
    fields: dict[int, list[int | bytes]] = {}
    for number, value in _iterate_fields(message):
        fields.setdefault(number, []).append(value)
    return fields


def _iterate_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire_type == 2:
            length, at = _varint(message, at)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"wire type {wire_type} at byte {at}")
        if at + length > len(message):
            raise ValueError(f"the file ends inside a field at byte {at}")
        yield number, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError(f"a number of more than 64 bits at byte {at}")
