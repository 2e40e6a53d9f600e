"""A byte-level BPE tokenizer from `vocab.json` and `merges.txt` (GPT-2's layout) → a `tokenizers.Tokenizer`.

Text is brought into normal form C, cut by a regular expression, and each cut is spelled in printable stand-ins for its
bytes, whose neighbours are merged in the order of `merges.txt`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from va_export.checkpoint.json_files import read_form
from va_export.checkpoint.special_tokens import TOKENIZER_FILE, AddedToken, SpecialTokens, TokenId, add_tokens
from va_export.documents import is_lfs_pointer
from va_export.errors import VaExportError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VOCABULARY_FILE, MERGES_FILE = "vocab.json", "merges.txt"
# How Qwen2 cuts text before merging bytes: English contractions, words with what leads them, single digits, punctuation
# with its line breaks, white space (`pre_tokenizer` of Qwen/Qwen2-0.5B-Instruct's tokenizer.json).
_QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def from_qwen2_files(vocabulary: Path, special: SpecialTokens) -> Tokenizer:
    """Qwen2's tokenizer, of which Qwen2.5's has further added tokens.

    Raises:
        VaExportError: the files are of another class, or as `build_tokenizer`.
    """
    name = special.tokenizer_class or "Qwen2Tokenizer"
    if not name.startswith("Qwen2Tokenizer"):
        raise VaExportError(
            f"the tokenizer class {name} over {VOCABULARY_FILE} is not known",
            where=vocabulary.parent,
            fix=f"provide a {TOKENIZER_FILE} beside it",
        )
    return build_tokenizer(vocabulary.parent, _QWEN2_PATTERN, special.added)


def build_tokenizer(directory: Path, pattern: str, added: Sequence[AddedToken]) -> Tokenizer:
    """The tokenizer whose vocabulary and merges lie in `directory`.

    Args:
        pattern: regular expression (Oniguruma) whose matches are tokenized on their own.
        added: tokens that are cut out of the text before anything else; their ids follow the vocabulary's.

    Raises:
        VaExportError: a file is missing or malformed, or an added token would get another id.
    """
    import tokenizers
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

    vocabulary = read_form(directory / VOCABULARY_FILE, dict[str, TokenId], what="tokenizer's vocabulary")
    if set(vocabulary.values()) != set(range(len(vocabulary))):  # added tokens would take the ids that are left free
        raise VaExportError(
            f"the ids of {len(vocabulary)} tokens are not 0 to {len(vocabulary) - 1}, each once",
            where=directory / VOCABULARY_FILE,
            fix="download the file again",
        )
    merges = _merges(directory / MERGES_FILE)
    try:
        tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    except Exception as error:  # the library raises plain Exception for a merge that is not in the vocabulary
        raise VaExportError(
            f"vocabulary and merges do not belong together: {error}",
            where=directory,
            fix=f"download {VOCABULARY_FILE} and {MERGES_FILE} again",
        ) from error
    _check_whole(vocabulary, merges, {token.content for token in added}, directory / MERGES_FILE)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    add_tokens(tokenizer, added, directory)
    return tokenizer


def _check_whole(
    vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], added: Collection[str], path: Path
) -> None:
    """Each merge makes a piece, in the order of their ids: of a file that was cut, the last piece is missing.

    Raises:
        VaExportError: no merge makes the last piece of several bytes.
    """
    pieces = [piece for piece in vocabulary if len(piece) > 1 and piece not in added]
    last = max(pieces, key=vocabulary.__getitem__, default=None)
    if last is not None and last not in {left + right for left, right in merges}:
        raise VaExportError(
            f"none of the {len(merges)} merges makes the last of {len(pieces)} pieces, {last!r}:"
            f" the file was cut short or belongs to another {VOCABULARY_FILE}",
            where=path,
            fix=f"download {VOCABULARY_FILE} and {MERGES_FILE} again",
        )


def _merges(path: Path) -> list[tuple[str, str]]:
    """The pairs, in order; a first line `#version: …` is none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise VaExportError(
            f"the tokenizer's merges cannot be read: {reason}", where=path, fix="complete the checkpoint directory"
        ) from error
    if is_lfs_pointer(lines[0].encode()):
        raise VaExportError("this is a pointer of Git LFS, not the file itself", where=path, fix="git lfs pull")
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in pairs):
        raise VaExportError("a line of the merges is not a pair", where=path, fix="download the file again")
    return [(pair[0], pair[1]) for pair in pairs]
