"""From the original checkpoint's tokenizer files to one tokenizer.json."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import sentencepiece

from va_export.checkpoint.files import Checkpoint
from va_export.errors import VaExportError
from va_export.models import family_named
from va_export.models.internvl2.tokenizer import write_tokenizer
from va_export.runtime.tokenizer import load_tokenizer

PROMPT_TOKENS = ("<|im_end|>", "<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Tokenizer files as the published checkpoints have them: two added tokens over unused pieces, three after."""
    model = io.BytesIO()
    corpus = ["Frame1: a red bike passes the camera", "视频中有一辆红色的自行车", "Что происходит на видео?"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_writer=model,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=["[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_146]"],
        minloglevel=2,
    )
    directory = tmp_path / "source"
    directory.mkdir()
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = [pieces.piece_to_id("[UNUSED_TOKEN_145]"), pieces.piece_to_id("[UNUSED_TOKEN_146]")]
    ids += [len(pieces) + i for i in range(3)]
    added = {str(number): {"content": token, "special": True} for number, token in zip(ids, PROMPT_TOKENS, strict=True)}
    settings = {"added_tokens_decoder": added, "add_bos_token": True, "tokenizer_class": "InternLM2Tokenizer"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def test_prompt_ids_equal_sentencepiece_between_the_added_tokens(source: Path, tmp_path: Path) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    assert write_tokenizer(source, tmp_path) == tmp_path / "tokenizer.json"
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    end, start, image, image_end, context = (tokenizer.token_id(token) for token in PROMPT_TOKENS)
    assert end == pieces.piece_to_id("[UNUSED_TOKEN_145]")
    assert context == len(pieces) + 2
    text = "<s><|im_start|>user\nFrame1: <img><IMG_CONTEXT><IMG_CONTEXT></img>\n视频里 что 🚲?  <|im_end|>"
    expected = [1, start, *pieces.encode("user\nFrame1: "), image, context, context, image_end]
    expected += [*pieces.encode("\n视频里 что 🚲?  "), end]
    assert tokenizer.encode(text) == expected
    assert tokenizer.decode(expected) == "user\nFrame1: \n视频里 что 🚲?  "


def test_a_ready_tokenizer_json_is_taken_as_it_is(source: Path, tmp_path: Path) -> None:
    (source / "tokenizer.json").write_text('{"made": "elsewhere"}')
    write_tokenizer(source, tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == '{"made": "elsewhere"}'


def test_without_tokenizer_files_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert write_tokenizer(tmp_path / "empty", tmp_path) is None
    assert not (tmp_path / "tokenizer.json").exists()


def test_added_tokens_json_is_enough(source: Path, tmp_path: Path) -> None:
    settings = json.loads((source / "tokenizer_config.json").read_text())
    listed = {entry["content"]: int(number) for number, entry in settings["added_tokens_decoder"].items()}
    (source / "tokenizer_config.json").unlink()
    (source / "added_tokens.json").write_text(json.dumps(listed))
    write_tokenizer(source, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    assert {token: tokenizer.token_id(token) for token in PROMPT_TOKENS} == listed


def test_spec_takes_its_token_ids_from_the_tokenizer_files(source: Path, tmp_path: Path) -> None:
    family = family_named("internvl2")
    directory = family.write_tiny_checkpoint(tmp_path / "tiny")
    (directory / "tokenizer.json").unlink()
    added = {"100": {"content": "<IMG_CONTEXT>"}, "101": {"content": "<|im_end|>"}}
    (directory / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    spec = family.spec_from_checkpoint(Checkpoint.open(directory))
    assert spec.image_token_id == 100
    assert spec.eos_token_ids == (101, 257)
    assert family.spec_from_checkpoint(Checkpoint.open(directory), image_token_id=9).image_token_id == 9


def test_malformed_lists_of_added_tokens_are_refused(source: Path, tmp_path: Path) -> None:
    for broken in ({"x": {"content": "<img>"}}, {"5": {}}, ["<img>"]):
        (source / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": broken}))
        with pytest.raises(VaExportError, match="list of added tokens is malformed"):
            write_tokenizer(source, tmp_path)
