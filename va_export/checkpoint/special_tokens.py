"""Which ids a checkpoint's files give to its special tokens, from all files that say so, and where they disagree.

`tokenizer.json` comes before `tokenizer_config.json`, and that before `added_tokens.json` and
`special_tokens_map.json`: so Transformers reads them. Two ids for a token of the prompt are an error; for any other
token the first file is right, and a note says so. A file that calls a word of the vocabulary a special token (by
`pad_token`, `additional_special_tokens`, …) makes it one, with the vocabulary's id. `generation_config.json` says which
ids end an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from va_export.checkpoint.json_files import as_form, read_form, read_json
from va_export.errors import VaExportError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILE, SETTINGS_FILE, ADDED_FILE = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"
MAP_FILE, GENERATION_FILE = "special_tokens_map.json", "generation_config.json"
VOCABULARY_FILE = "vocab.json"
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_FIX = "take all files of the tokenizer from one checkpoint"

TokenId = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
TokenIds = TokenId | list[TokenId] | None
Note = Callable[[str], None]


@dataclass(frozen=True)
class AddedToken:
    """A token that is cut out of the text before anything else."""

    id: int
    content: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


@dataclass(frozen=True)
class SpecialTokens:
    """What the files say together.

    Attributes:
        added: every added token once, by id.
        named: contents that a file names, with a role (`pad_token`) or in a list of further special tokens.
        bos_token, eos_token: by content, None where no file names one.
        add_bos_token, add_eos_token: as `tokenizer_config.json` says; None where it does not.
        tokenizer_class: the class of Transformers that the files are for.
        legacy: as `tokenizer_config.json` says; None where it does not. LlamaTokenizer's own word.
        stop_ids: of `generation_config.json`.
    """

    added: tuple[AddedToken, ...]
    named: frozenset[str]
    bos_token: str | None
    eos_token: str | None
    add_bos_token: bool | None
    add_eos_token: bool | None
    tokenizer_class: str | None
    legacy: bool | None
    stop_ids: tuple[int, ...]

    def id_of(self, content: str | None) -> int | None:
        """The id of an added token, None if there is none with that content."""
        return next((token.id for token in self.added if token.content == content), None)


class _Entry(msgspec.Struct, frozen=True):
    content: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False

    def token(self, number: int) -> AddedToken:
        """The entry as the token of id `number`."""
        return AddedToken(
            number, self.content, self.special, self.lstrip, self.rstrip, self.single_word, self.normalized
        )


class _ListedEntry(_Entry, frozen=True, kw_only=True):
    id: TokenId


class _TokenizerFile(msgspec.Struct, frozen=True):
    added_tokens: list[_ListedEntry] | None = None


class _Named(msgspec.Struct, frozen=True):
    bos_token: str | _Entry | None = None
    eos_token: str | _Entry | None = None


_NamedTokens = dict[str, str | _Entry | None]


class _Lists(msgspec.Struct, frozen=True):
    """Special tokens without a role, or, as Transformers 5 writes them, with one of a model's own."""

    additional_special_tokens: list[str | _Entry] | _NamedTokens | None = None
    extra_special_tokens: list[str | _Entry] | _NamedTokens | None = None


class _Settings(_Named, frozen=True):
    added_tokens_decoder: dict[Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,9}$")], _Entry] | None = None
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    tokenizer_class: str | None = None
    legacy: bool | None = None
    split_special_tokens: bool | None = None


class _Generation(msgspec.Struct, frozen=True):
    eos_token_id: TokenIds = None


def as_tuple(said: TokenIds) -> tuple[int, ...]:
    """What a key that holds one id, several or none says."""
    return () if said is None else tuple(said) if isinstance(said, list) else (said,)


def read_special_tokens(directory: Path, needed: Collection[str], note: Note) -> SpecialTokens:
    """Read all files in `directory` that name special tokens.

    Args:
        needed: tokens that prompts are made of.
        note: is told what the files disagree on.

    Raises:
        VaExportError: a file is malformed, or two of them give a needed token different ids.
    """
    settings = read_form(directory / SETTINGS_FILE, _Settings, what="tokenizer configuration")
    names = read_form(directory / MAP_FILE, _Named, what="map of special tokens")
    generation = read_form(directory / GENERATION_FILE, _Generation, what="generation settings")
    bos, eos = (_first_named(note, key, settings, names) for key in ("bos_token", "eos_token"))
    if settings.split_special_tokens:
        note(f"{SETTINGS_FILE} would spell special tokens out: left out, prompts are made of them.")
    stated = _without_stale(directory, settings, [*_stated(directory, settings)], needed, note)
    stated += _stated_by_name(directory, settings, {token.content for _, token in stated}, note)
    return SpecialTokens(
        added=_agreed(directory, stated, {*needed, bos, eos}, note),
        named=frozenset(str(_content(name)) for file in _naming_files(directory, settings) for name in _names_in(file)),
        bos_token=bos,
        eos_token=eos,
        add_bos_token=settings.add_bos_token,
        add_eos_token=settings.add_eos_token,
        tokenizer_class=settings.tokenizer_class,
        legacy=settings.legacy,
        stop_ids=as_tuple(generation.eos_token_id),
    )


def add_tokens(tokenizer: Tokenizer, added: Iterable[AddedToken], where: Path | str) -> None:
    """Add tokens to a tokenizer, in the order of their ids; those that it has keep their ids.

    Raises:
        VaExportError: a token gets another id than it should have.
    """
    import tokenizers

    for token in sorted(added, key=lambda token: token.id):
        flags = {name: value for name, value in asdict(token).items() if name not in ("id", "content")}
        fast = tokenizers.AddedToken(token.content, **flags)
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([fast])
        if (number := tokenizer.token_to_id(token.content)) != token.id:
            raise VaExportError(
                f"the added token {token.content} of id {token.id} would get id {number}", where=where, fix=_FIX
            )


def _stated(directory: Path, settings: _Settings) -> Iterator[tuple[str, AddedToken]]:
    """(file, token), most trusted file first."""
    if (path := directory / TOKENIZER_FILE).is_file():
        listed = {"added_tokens": read_json(path, what="tokenizer").get("added_tokens")}
        for entry in as_form(listed, _TokenizerFile, what="tokenizer", where=path).added_tokens or []:
            yield TOKENIZER_FILE, entry.token(entry.id)
    for key, one in (settings.added_tokens_decoder or {}).items():
        yield SETTINGS_FILE, one.token(int(key))
    plain = read_form(directory / ADDED_FILE, dict[str, TokenId], what="list of added tokens")
    for content, number in plain.items():
        yield ADDED_FILE, AddedToken(number, content)


def _without_stale(
    directory: Path,
    settings: _Settings,
    stated: list[tuple[str, AddedToken]],
    needed: Collection[str],
    note: Note,
) -> list[tuple[str, AddedToken]]:
    """Without what `added_tokens.json` alone lists beside two newer files that say all, which Transformers then does
    not read; only tokens of the prompt are still looked up there."""
    if settings.added_tokens_decoder is None or not (directory / TOKENIZER_FILE).is_file():
        return stated
    known = {token.content for file, token in stated if file != ADDED_FILE} | set(needed)
    stale = [token.content for _, token in stated if token.content not in known]
    if stale:
        note(f"{ADDED_FILE} alone lists {len(stale)} tokens, {stale[0]} the first: left out, as Transformers does.")
    return [(file, token) for file, token in stated if token.content in known]


def _stated_by_name(
    directory: Path, settings: _Settings, listed: Collection[str], note: Note
) -> Iterator[tuple[str, AddedToken]]:
    """(file, token) of the special tokens that a file names and none lists with an id: the vocabulary has it."""
    vocabulary = _vocabulary(directory)
    for file in _naming_files(directory, settings):
        for named in _names_in(file):
            entry = _Entry(named) if isinstance(named, str) else named
            number = vocabulary.get(entry.content)
            if isinstance(number, int) and entry.content not in listed:
                yield file.name, entry.token(number)
            elif vocabulary and number is None and entry.content not in listed:
                note(f"{file.name} names the special token {entry.content}, to which no file gives an id: left out.")


def _naming_files(directory: Path, settings: _Settings) -> tuple[Path, ...]:
    """Who names special tokens. As in Transformers: whoever writes `added_tokens_decoder` has written all names beside
    it."""
    files = (SETTINGS_FILE,) if settings.added_tokens_decoder is not None else (SETTINGS_FILE, MAP_FILE)
    return tuple(directory / file for file in files)


def _names_in(path: Path) -> list[str | _Entry]:
    """Every special token that a file names, with a role (`pad_token`) or in a list, each once."""
    content = read_json(path, what="list of special tokens") if path.is_file() else {}
    roles = {
        key: value
        for key, value in content.items()
        if key.endswith("_token") and (isinstance(value, str) or (isinstance(value, dict) and "content" in value))
    }
    names = [*as_form(roles, _NamedTokens, what="list of special tokens", where=path).values()]
    lists = as_form(content, _Lists, what="list of special tokens", where=path)
    for key in _LISTS:
        entries = getattr(lists, key) or []
        names += entries.values() if isinstance(entries, dict) else entries
    return list({_content(name): name for name in names if name is not None}.values())


def _vocabulary(directory: Path) -> dict[str, Any]:
    """Piece → id of a vocabulary in JSON; what is wrong with it, who opens it as a tokenizer finds out."""
    if (path := directory / TOKENIZER_FILE).is_file():
        model = read_json(path, what="tokenizer").get("model")
        pieces = model.get("vocab") if isinstance(model, dict) else None
    elif (path := directory / VOCABULARY_FILE).is_file():
        pieces = read_json(path, what="tokenizer's vocabulary")
    else:
        pieces = None
    if isinstance(pieces, list):  # of a Unigram model: pairs of a piece and its score
        return {pair[0]: number for number, pair in enumerate(pieces) if isinstance(pair, list) and pair}
    return pieces if isinstance(pieces, dict) else {}


def _agreed(
    directory: Path, stated: Iterable[tuple[str, AddedToken]], needed: Collection[str | None], note: Note
) -> tuple[AddedToken, ...]:
    """Each token and each id once; the id is the first file's, how the token is cut out of text
    `tokenizer_config.json`'s, if it lists the token: as Transformers has it."""
    by_content: dict[str, tuple[str, AddedToken]] = {}
    by_id: dict[int, tuple[str, AddedToken]] = {}
    for file, token in stated:
        said = f"{file} gives the token {token.content} the id {token.id}"
        if token.content in by_content:
            first, same = by_content[token.content]
            what = f"{said}, {first} the id {same.id}" if same.id != token.id else ""
            if file == SETTINGS_FILE and not what:
                by_content[token.content] = by_id[token.id] = first, token
        elif token.id in by_id:
            first, same = by_id[token.id]
            what = f"{said}, which {first} gives to {same.content}"
        else:
            by_content[token.content] = by_id[token.id] = file, token
            continue
        if what and {token.content, same.content} & set(needed):
            raise VaExportError(what, where=directory / file, fix=_FIX)
        if what:
            note(f"{what}: {first} is followed.")
    return tuple(token for _, (_, token) in sorted(by_id.items()))


def _first_named(note: Note, key: str, settings: _Settings, names: _Named) -> str | None:
    first, second = (_content(getattr(one, key)) for one in (settings, names))
    if None not in (first, second) and first != second:
        note(f"{key} is {first} in {SETTINGS_FILE} and {second} in {MAP_FILE}: {SETTINGS_FILE} is followed.")
    return second if first is None else first


def _content(token: str | _Entry | None) -> str | None:
    return token.content if isinstance(token, _Entry) else token
