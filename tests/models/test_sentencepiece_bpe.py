"""The fast tokenizer gives exactly SentencePiece's ids: models are trained here, texts are random and multilingual."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from refusals import refused
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import Tokenizer

from va_export.errors import VaExportError
from va_export.models.sentencepiece_bpe import AddedToken, PieceType, build_tokenizer, read_model

CORPUS = """The quick brown fox jumps over the lazy dog. A video of a bike, bikes, biking; 12:30 and 3.14159
Der schnelle braune Fuchs springt über den faulen Hund.  Zwei   Leerzeichen
敏捷的棕色狐狸跳过懒狗。视频中有几辆自行车？
Быстрая коричневая лиса прыгает через ленивую собаку.
سريع الثعلب البني يقفز فوق الكلب الكسول
aaaa aaaaaaa abababab bababa ab aab aaab xxxxxxxx ======== --------
def f(x):    return x ** 2"""

SETTINGS: dict[str, dict[str, Any]] = {
    "without-prefix": {"normalization_rule_name": "identity", "add_dummy_prefix": False},
    "with-prefix": {"normalization_rule_name": "identity", "add_dummy_prefix": True},
    "pieces-across-words": {
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "split_by_whitespace": False,
        "split_by_unicode_script": False,
    },
    "normalising": {
        "normalization_rule_name": "nmt_nfkc",
        "add_dummy_prefix": True,
        "remove_extra_whitespaces": True,
        "allow_whitespace_only_pieces": False,
    },
    "tidying-blanks": {  # and line breaks stay, beside which blanks stay too
        "normalization_rule_name": "identity",
        "add_dummy_prefix": True,
        "remove_extra_whitespaces": True,
        "allow_whitespace_only_pieces": False,
    },
    "no-byte-fallback": {"normalization_rule_name": "identity", "add_dummy_prefix": True, "byte_fallback": False},
}


def train(directory: Path, **settings: Any) -> Path:
    model = io.BytesIO()
    defaults = {
        "model_type": "bpe",
        "vocab_size": 700,
        "character_coverage": 0.98,
        "byte_fallback": True,
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.split("\n") * 20), model_writer=model, **(defaults | settings)
    )
    path = directory / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


def random_texts(count: int, *, combining: bool = True) -> list[str]:
    generator = random.Random(0)
    texts = [
        "",
        "a",
        " ",
        "   lead",
        "trail  ",
        "\n\n\ttab",
        "🎉🚲 é́",
        "日本語テキスト",
        "𝔘𝔫𝔦",
        "\ufeffx\u00a0y",
        "<0x41>",
        "one \n two",
        "  \n \n  ",
    ]
    ranges = [(32, 126), (0x400, 0x450), (0x4E00, 0x4F00), (0x1F300, 0x1F400), (9, 13)]
    if combining:  # Hebrew with points, Arabic, Devanagari, Thai, Hangul, kana, Latin's combining marks
        ranges += [(0x591, 0x5EA), (0x621, 0x652), (0x905, 0x94D), (0xE01, 0xE3A), (0xAC00, 0xAD00), (0x3041, 0x30FA)]
        ranges += [(0x300, 0x36F)]
    words = CORPUS.split()
    for _ in range(count):
        texts.append("".join(generator.choices("ab x=- ", k=generator.randint(1, 40))))
        texts.append(" ".join(generator.choices(words, k=8)))
        texts.append("".join(chr(generator.randint(*generator.choice(ranges))) for _ in range(30)))
    return texts


@pytest.mark.parametrize("name", SETTINGS)
def test_ids_and_text_equal_sentencepiece(name: str, tmp_path: Path) -> None:
    path = train(tmp_path, **SETTINGS[name])
    truth = sentencepiece.SentencePieceProcessor(model_file=str(path))
    model = read_model(path)
    fast = build_tokenizer(model, [])
    assert [piece.text for piece in model.pieces] == [truth.id_to_piece(i) for i in range(len(truth))]
    assert [piece.score for piece in model.pieces] == [truth.get_score(i) for i in range(len(truth))]
    assert [i for i, piece in enumerate(model.pieces) if piece.type == PieceType.BYTE] == [
        i for i in range(len(truth)) if truth.is_byte(i)
    ]
    byte_pieces = 0
    # Where a model normalises, tokenizers does so one grapheme at a time and SentencePiece by the longest match of its
    # table: random heaps of combining marks come out differently there.
    for text in random_texts(300, combining=name != "normalising"):
        ids = truth.encode(text)
        byte_pieces += sum(truth.is_byte(i) for i in ids)
        assert fast.encode(text, add_special_tokens=False).ids == ids, text
        if model.byte_fallback:
            assert fast.decode(ids) == truth.decode(ids), text
    assert (byte_pieces > 0) == model.byte_fallback  # the texts reach what is tested


def reference_ids(truth: Any, added: list[AddedToken], text: str) -> list[int]:
    """Hugging Face's rule for tokenizers over SentencePiece: cut at added tokens, tokenize what lies between."""
    ids: list[int] = []
    while text:
        found = [(text.index(token.content), -len(token.content), token) for token in added if token.content in text]
        if not found:
            return ids + truth.encode(text)
        at, _, token = min(found, key=lambda hit: hit[:2])
        ids += (truth.encode(text[:at]) if at else []) + [token.id]
        text = text[at + len(token.content) :]
    return ids


@pytest.mark.parametrize("name", ["without-prefix", "with-prefix"])
def test_added_tokens_take_over_pieces_or_follow_the_last(name: str, tmp_path: Path) -> None:
    path = train(tmp_path, user_defined_symbols=["[UNUSED_0]", "[UNUSED_1]"], **SETTINGS[name])
    truth = sentencepiece.SentencePieceProcessor(model_file=str(path))
    last = len(truth)
    added = [
        AddedToken(1, "<s>"),
        AddedToken(2, "</s>"),
        AddedToken(truth.piece_to_id("[UNUSED_0]"), "<|im_end|>"),
        AddedToken(truth.piece_to_id("[UNUSED_1]"), "<|im_start|>"),
        AddedToken(last, "<img>"),
        AddedToken(last + 1, "</img>"),
        AddedToken(last + 2, "<IMG_CONTEXT>"),
    ]
    fast = build_tokenizer(read_model(path), added)
    generator = random.Random(1)
    texts = random_texts(60)
    for _ in range(150):
        parts = [generator.choice(texts) for _ in range(3)]
        text = "".join(part + generator.choice(added).content for part in parts) + "Frame1: <img><IMG_CONTEXT></img>\n"
        ids = fast.encode(text, add_special_tokens=False).ids
        assert ids == reference_ids(truth, added, text), text
    assert fast.decode([1, *truth.encode("a fox"), 2]) == "a fox"


def test_a_prefix_of_the_whole_text_stands_behind_no_added_token(tmp_path: Path) -> None:
    """Transformers' `legacy: false`: its SentencePiece has no dummy prefix, and gets a blank before the whole text."""
    path = train(tmp_path, **SETTINGS["with-prefix"])
    bare = ModelProto.FromString(path.read_bytes())
    bare.normalizer_spec.add_dummy_prefix = False
    truth = sentencepiece.SentencePieceProcessor(model_proto=bare.SerializeToString())
    added = [AddedToken(1, "<s>"), AddedToken(len(truth), "<img>")]
    build_tokenizer(read_model(path), added, prefixes_once=True).save(str(tmp_path / "tokenizer.json"))
    fast = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    generator = random.Random(2)
    texts = random_texts(60)
    for _ in range(200):
        parts = [
            generator.choice(texts) + generator.choice(["", *(token.content for token in added)]) for _ in range(4)
        ]
        text = "".join(parts)
        starts = not text or text.startswith(tuple(token.content for token in added))
        expected = reference_ids(truth, added, text if starts else f" {text}")
        assert fast.encode(text, add_special_tokens=False).ids == expected, text
    assert fast.encode(" a<img> a", add_special_tokens=False).ids == reference_ids(truth, added, "  a<img> a")


def test_user_defined_pieces_stay_whole(tmp_path: Path) -> None:
    path = train(tmp_path, user_defined_symbols=["[KEEP]", "fox"], **SETTINGS["without-prefix"])
    truth = sentencepiece.SentencePieceProcessor(model_file=str(path))
    fast = build_tokenizer(read_model(path), [])
    for text in ("a[KEEP]b", "foxes jump", "[KEEP][KEEP]", "the fox", " [KEEP] "):
        assert fast.encode(text).ids == truth.encode(text)


def test_user_defined_pieces_of_blanks_keep_their_ids(tmp_path: Path) -> None:
    """Yi's tokenizer (40B) has one for every run of blanks up to sixteen."""
    runs = ["\u2581" * count for count in range(2, 9)]
    path = train(tmp_path, user_defined_symbols=[*runs, "<h1>"], **SETTINGS["without-prefix"])
    truth = sentencepiece.SentencePieceProcessor(model_file=str(path))
    fast = build_tokenizer(read_model(path), [])
    for text in ("a  b", "def f(x):    return", "  <h1>   x", " " * 21, "a b", "\u2581\u2581x"):
        assert fast.encode(text).ids == truth.encode(text), text
        assert fast.decode(truth.encode(text)) == truth.decode(truth.encode(text))


def test_added_tokens_of_another_model_are_refused(tmp_path: Path) -> None:
    model = read_model(train(tmp_path))
    with refused("tokenizer.model", "<img>", 5000):
        build_tokenizer(model, [AddedToken(5000, "<img>")])


def test_survives_being_saved(tmp_path: Path) -> None:
    fast = build_tokenizer(read_model(train(tmp_path)), [AddedToken(1, "<s>")])
    fast.save(str(tmp_path / "tokenizer.json"))
    again = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in random_texts(20):
        assert again.encode(text).ids == fast.encode(text).ids


def test_refuses_what_is_no_bpe_model(tmp_path: Path) -> None:
    path = train(tmp_path, model_type="unigram")
    with refused(path, "BPE"):
        read_model(path)
    whole = path.read_bytes()
    for damaged in (b"", b"not a model", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with refused(path, "SentencePiece"):
            read_model(path)


def test_a_pointer_of_git_lfs_is_called_that(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 9\n")
    with refused(path, "Git LFS"):
        read_model(path)


def test_words_marked_behind_are_refused(tmp_path: Path) -> None:
    path = train(tmp_path, treat_whitespace_as_suffix=True)
    with refused(path, "treat_whitespace_as_suffix", True):
        read_model(path)


def test_pieces_that_stand_twice_or_are_empty_are_refused(tmp_path: Path) -> None:
    path = train(tmp_path)
    whole, truth = path.read_bytes(), sentencepiece.SentencePieceProcessor(model_file=str(path))
    name = truth.id_to_piece(300).encode()
    for twin in (truth.id_to_piece(301).encode(), b""):
        entry = b"\x0a" + bytes([len(name)]) + name
        other = b"\x0a" + bytes([len(twin)]) + twin
        at = whole.index(entry) - 1
        size = whole[at]
        path.write_bytes(whole[:at] + bytes([size + len(other) - len(entry)]) + other + whole[at + 1 + len(entry) :])
        with refused(path, 301 if twin else 300):
            read_model(path)


def test_a_damaged_table_of_normal_forms_is_refused(tmp_path: Path) -> None:
    model = replace(read_model(train(tmp_path, **SETTINGS["normalising"])), charsmap=b"damaged")
    with pytest.raises(VaExportError) as caught:
        build_tokenizer(model, [])
    assert caught.value.where == "tokenizer.model"


def test_a_number_without_end_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\xff" * 2_000_000)
    with refused(tmp_path / "tokenizer.model", 64):
        read_model(tmp_path / "tokenizer.model")
