"""Text to ids and back, and text as ids arrive: pieces put together are the whole, and no character is ever broken."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from refusals import refused
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from va_export.models import sentencepiece_bpe
from va_export.runtime.tokenizer import Tokenizer, load_tokenizer

TEXTS = [
    "hello  world",
    " leading and trailing ",
    "视频里有一辆自行车。",
    "a🚲b🎉🎉",
    "é ü ß ﬁ",
    "x\n\n\ty",
    "",
    " ",
    "你",
]
SPECIAL = "<|end|>"


def byte_level() -> FastTokenizer:
    """GPT-2's kind: a character is spread over its bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = FastTokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([SPECIAL])
    return tokenizer


def byte_fallback(more: Sequence[str] = ()) -> FastTokenizer:
    """SentencePiece's kind: words carry their leading space, rare characters are bytes, a first space is dropped."""
    words = ["<unk>", "▁", "▁hello", "▁world", "▁leading", "▁and", "▁trailing", "é", "你", *"abxy\n\t.", *more]
    vocabulary = {word: i for i, word in enumerate([*words, *(f"<0x{byte:02X}>" for byte in range(256))])}
    tokenizer = FastTokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([SPECIAL])
    return tokenizer


@pytest.fixture(params=[byte_level, byte_fallback], ids=["byte-level", "byte-fallback"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer(request.param())


@pytest.mark.parametrize("text", TEXTS)
def test_decode_undoes_encode(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("between_special_tokens", [False, True])
def test_streamed_text_is_the_whole_text(tokenizer: Tokenizer, text: str, between_special_tokens: bool) -> None:
    ids = tokenizer.encode(text)
    if between_special_tokens:
        special = tokenizer.token_id(SPECIAL)
        assert special is not None
        ids = [special, *ids, special]
    stream = tokenizer.stream()
    pieces = [stream.push(number) for number in ids]
    pieces.append(stream.finish())
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_words_keep_their_spaces_across_special_tokens() -> None:
    tokenizer = Tokenizer(byte_fallback())
    special, hello, world = (tokenizer.token_id(token) for token in (SPECIAL, "▁hello", "▁world"))
    ids = [special, hello, special, special, world, hello]
    stream = tokenizer.stream()
    assert [stream.push(number) for number in ids] == ["", "hello", "", "", " world", " hello"]
    assert tokenizer.decode(ids) == "hello world hello"


def test_a_character_comes_out_with_its_last_byte(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream()
    ids = tokenizer.encode("🚲")[-4:]
    assert [stream.push(number) for number in ids] == ["", "", "", "🚲"]
    assert stream.finish() == ""


def test_bytes_that_are_no_character_hold_nothing_up(tokenizer: Tokenizer) -> None:
    broken = tokenizer.encode("🚲")[-4:-1]
    good = tokenizer.encode("xyx")[-3:]
    stream = tokenizer.stream()
    text = "".join(stream.push(number) for number in [*broken * 3, *good]) + stream.finish()
    assert text.endswith("xyx")
    assert "\ufffd" in text
    stream = tokenizer.stream()
    assert "".join(stream.push(number) for number in broken) == ""
    assert set(stream.finish()) == {"\ufffd"}


def cleaning() -> FastTokenizer:
    """As InternLM2's: the text of all ids loses blanks before punctuation."""
    tokenizer = byte_fallback([" ", "  ", " n", "'", "n't", "'s", " '"])
    tokenizer.decoder = sentencepiece_bpe._decoder(strips_first_blank=True, cleans_up=True)
    return tokenizer


def test_what_may_yet_change_waits() -> None:
    tokenizer = Tokenizer(cleaning())
    stream = tokenizer.stream()
    words = ["▁hello", "▁", ".", "▁and", " n", "'", "a", "▁world", "▁", "."]
    pieces = [stream.push(tokenizer.token_id(word) or -1) for word in words]
    assert pieces == ["hello", "", ".", " and", "", "", "", " n'a world", "", "."]
    assert stream.finish() == ""


def test_cleaned_text_is_the_same_when_streamed() -> None:
    """Against Transformers' own function, over texts of almost nothing but what it replaces."""
    raw, cleaned = Tokenizer(byte_fallback()), Tokenizer(cleaning())
    generator = random.Random(2509)
    words = [" ", "  ", " n", "'", "n't", "'s", " '", ".", "a", "▁", "▁hello", "你"]
    known = [number for number in map(cleaned.token_id, words) if number is not None]
    assert len(known) == len(words)
    changed = 0
    for _ in range(500):
        ids = generator.choices(known, k=generator.randrange(1, 14))
        stream = cleaned.stream()
        text = "".join([*(stream.push(number) for number in ids), stream.finish()])
        spelled = "".join(str(cleaned._tokenizer.id_to_token(number)) for number in ids).replace("▁", " ")
        plain = spelled.removeprefix(" ")
        expected = PreTrainedTokenizerBase.clean_up_tokenization(None, plain)  # type: ignore[arg-type]
        assert text == cleaned.decode(ids) == expected, spelled
        changed += expected != plain
    assert changed > 150 and raw.reach == 0 and (cleaned.unsettled, cleaned.reach) == (" '", 3)


def test_any_ids_can_be_streamed(tokenizer: Tokenizer) -> None:
    generator = random.Random(0)
    for _ in range(20):
        stream = tokenizer.stream()
        for _ in range(200):
            stream.push(generator.randrange(tokenizer.vocab_size))
        stream.finish()


def test_loads_a_directory(tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert load_tokenizer(tmp_path) is None
    byte_level().save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    assert loaded is not None
    assert loaded.encode("hé") == Tokenizer(byte_level()).encode("hé")
    assert loaded.vocab_size == 257
    assert loaded.token_id("nothing of the kind") is None
    (tmp_path / "tokenizer.json").write_text("{}")
    with refused(tmp_path / "tokenizer.json"):
        load_tokenizer(tmp_path)
