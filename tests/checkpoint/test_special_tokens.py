"""Special tokens that files only name, without an id, are those of Transformers on the same files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from refusals import refused
from transformers import AutoTokenizer

from va_export.checkpoint.files import Checkpoint
from va_export.checkpoint.special_tokens import read_special_tokens
from va_export.models import family_named
from va_export.runtime.tokenizer import load_tokenizer

SETTINGS, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
WORDS = ("<ref>", "</ref>", "<pad>", "<box>")  # ids 1 to 4 of the vocabulary, and listed nowhere else
TEXTS = ("where is <ref>it</ref> and <box> ?", "a <ref> b  </ref>c", "<pad><pad>", "<s>x</s>")
AS_ENTRY = {
    "content": "</ref>",
    "lstrip": True,
    "rstrip": False,
    "normalized": False,
    "single_word": False,
    "special": True,
}


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """A checkpoint whose vocabulary has four more words, in the places of control characters."""
    directory = family_named("internvl2").write_tiny_checkpoint(tmp_path / "ready")
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    vocabulary = {number: piece for piece, number in tokenizer["model"]["vocab"].items()}
    vocabulary |= dict(enumerate(WORDS, start=1))
    tokenizer["model"]["vocab"] = {piece: number for number, piece in vocabulary.items()}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    return directory


def write(directory: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Set keys of files; None takes one out."""
    for name, keys in files.items():
        path = directory / name
        content = (json.loads(path.read_text()) if path.is_file() else {}) | keys
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def ids_and_texts(directory: Path, out: Path) -> tuple[list[list[int]], list[str], list[str]]:
    """Ids of all texts, those spelled again, and what was noted."""
    checkpoint, family = Checkpoint.open(directory), family_named("internvl2")
    first = family.processing(family.spec_from_checkpoint(checkpoint), checkpoint).bos_token_id
    out.mkdir()
    family.write_tokenizer(checkpoint, out)
    tokenizer = load_tokenizer(out)
    assert tokenizer is not None
    ids = [tokenizer.encode(text) for text in TEXTS]
    start = [] if first is None else [first]
    return [[*start, *some] for some in ids], [tokenizer.decode(some) for some in ids], checkpoint.notes


@pytest.mark.parametrize(
    "files",
    [
        {SETTINGS: {}},
        {SETTINGS: {"additional_special_tokens": ["<ref>", "</ref>"]}},
        {SETTINGS: {"additional_special_tokens": ["<ref>", {**AS_ENTRY, "__type": "AddedToken"}]}},
        {SETTINGS: {"extra_special_tokens": ["<ref>"]}},
        {SETTINGS: {"extra_special_tokens": {"ref_token": "<ref>"}}},
        {SETTINGS: {"pad_token": "<pad>", "unk_token": "<ref>", "mask_token": None}},
        {SETTINGS: {"box_token": "<box>"}},
        # The second file is read where the first lists no tokens.
        {MAP: {"pad_token": "<pad>", "additional_special_tokens": ["<ref>"]}},
        {SETTINGS: {"added_tokens_decoder": None}, MAP: {"pad_token": "<pad>", "unk_token": AS_ENTRY}},
        {ADDED: {"<box>": 4}},
    ],
    ids=str,
)
def test_a_word_of_the_vocabulary_that_a_file_calls_special_is_special(
    files: Mapping[str, Mapping[str, Any]], ready: Path, tmp_path: Path
) -> None:
    write(ready, files)
    truth = AutoTokenizer.from_pretrained(ready)
    ids, texts, notes = ids_and_texts(ready, tmp_path / "out")
    assert ids == [truth(text).input_ids for text in TEXTS]
    assert texts == [truth.decode(some, skip_special_tokens=True) for some in ids]
    assert len(notes) == (ADDED in files)


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({SETTINGS: {"pad_token": "<nowhere>"}}, "<nowhere>"),
        ({SETTINGS: {"additional_special_tokens": ["<ref>", "<nowhere>"]}}, "<nowhere>"),
        ({SETTINGS: {"split_special_tokens": True}}, SETTINGS),
        ({ADDED: {"<box>": 4}}, ADDED),
    ],
    ids=str,
)
def test_what_is_not_followed_is_told(
    files: Mapping[str, Mapping[str, Any]], named: str, ready: Path, tmp_path: Path
) -> None:
    write(ready, files)
    *_, notes = ids_and_texts(ready, tmp_path / "out")
    assert len(notes) == 1 and named in notes[0]


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("pad_token", {"content": 5}, "pad_token.content"),
        ("additional_special_tokens", "<ref>", "additional_special_tokens"),
        ("additional_special_tokens", [7], "additional_special_tokens[0]"),
        ("extra_special_tokens", {"a": 1}, "extra_special_tokens.a"),
        ("extra_special_tokens", [{"text": "<ref>"}], "extra_special_tokens[0]"),
    ],
)
def test_malformed_names_are_refused_with_their_place(key: str, value: object, place: str, ready: Path) -> None:
    write(ready, {SETTINGS: {key: value}})
    with refused(f"{SETTINGS}: {place}"):
        read_special_tokens(ready, (), lambda _: None)
