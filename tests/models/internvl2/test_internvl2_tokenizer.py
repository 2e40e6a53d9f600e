"""From the original checkpoint's tokenizer files to one tokenizer.json."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from va_export.checkpoint.files import Checkpoint
from va_export.errors import VaExportError
from va_export.models import family_named
from va_export.models.checkpoint_tokenizer import read_tokenizer, write_tokenizer
from va_export.models.family import Choices, ModelSpec
from va_export.models.internvl2.tokenizer import layout, prefix_ids
from va_export.runtime.processing import Processing
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
    assert write_tokenizer(source, layout("internlm2-chat"), tmp_path) == tmp_path / "tokenizer.json"
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


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tokenizer_class": "LlamaTokenizer", "legacy": False}, 1),
        ({"tokenizer_class": "LlamaTokenizer", "legacy": False, "additional_special_tokens": ["<|im_start|>"]}, 0),
        ({"tokenizer_class": "LlamaTokenizer", "legacy": False, "pad_token": {"content": "<|im_start|>"}}, 0),
        ({"tokenizer_class": "LlamaTokenizer", "legacy": None}, 0),
        ({"tokenizer_class": "InternLM2Tokenizer", "legacy": False}, 0),
    ],
)
def test_a_prompt_of_4bs_tokenizer_has_the_prefix_of_its_first_token(
    changes: dict[str, Any], expected: int, source: Path
) -> None:
    edit(source / "tokenizer_config.json", lambda settings: settings.update(changes))
    found = read_tokenizer(source, layout("internlm2-chat"))
    assert found.fast is not None
    prefix = [found.fast.token_to_id("\u2581")]
    assert prefix != [None]
    assert [*prefix_ids(found, "<|im_start|>system")] == prefix * expected
    assert prefix_ids(found, "system<|im_start|>") == ()


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """A checkpoint with a `tokenizer.json`: the 256 bytes, and seven special tokens from 256 on."""
    return family_named("internvl2").write_tiny_checkpoint(tmp_path / "ready")


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def cut(content: dict[str, Any]) -> None:
    content["truncation"] = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}


def pad(content: dict[str, Any]) -> None:
    content["padding"] = {
        "strategy": {"Fixed": 60}, "direction": "Left", "pad_to_multiple_of": 8,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "</s>",
    }  # fmt: skip


def forget_the_last(content: dict[str, Any]) -> None:
    del content["added_tokens"][-1]


def take_blanks_before_images(content: dict[str, Any]) -> None:
    content["added_tokens_decoder"]["260"]["lstrip"] = True


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("tokenizer.json", cut),
        ("tokenizer.json", pad),
        ("tokenizer.json", lambda content: (cut(content), pad(content))),
        ("tokenizer.json", forget_the_last),
        ("tokenizer_config.json", take_blanks_before_images),
        ("tokenizer_config.json", lambda content: content.pop("added_tokens_decoder")),
    ],
)
def test_a_ready_tokenizer_json_gives_the_ids_of_transformers(
    file: str, change: Callable[[dict[str, Any]], object], ready: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    edit(ready / file, change)
    text = "<|im_start|>user\nFrame1:  <img><IMG_CONTEXT></img> Was läuft hier?<|im_end|>"
    expected = AutoTokenizer.from_pretrained(ready)(text).input_ids
    write_tokenizer(ready, layout("internlm2-chat"), tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    spec = family_named("internvl2").spec_from_checkpoint(checkpoint := Checkpoint.open(ready))
    bos = family_named("internvl2").processing(spec, checkpoint).bos_token_id
    assert [bos, *tokenizer.encode(text)] == expected
    assert json.loads((tmp_path / "tokenizer.json").read_text())["truncation"] is None  # for readers in other languages
    assert json.loads((tmp_path / "tokenizer.json").read_text())["padding"] is None


@pytest.mark.parametrize("change", [cut, pad])
def test_a_bundle_whose_tokenizer_cuts_or_pads_keeps_prompts_whole(
    change: Callable[[dict[str, Any]], object], ready: Path
) -> None:
    """Bundles of earlier versions hold the checkpoint's file as it was."""
    edit(ready / "tokenizer.json", change)
    tokenizer = load_tokenizer(ready)
    assert tokenizer is not None
    assert tokenizer.encode("abcdefgh") == [ord(letter) for letter in "abcdefgh"]


def test_merges_that_are_dropped_at_random_are_kept(source: Path, tmp_path: Path) -> None:
    write_tokenizer(source, layout("internlm2-chat"), tmp_path)
    edit(tmp_path / "tokenizer.json", lambda content: content["model"].update(dropout=0.9))
    again = tmp_path / "again"
    again.mkdir()
    write_tokenizer(tmp_path, layout("internlm2-chat"), again)
    tokenizer, pieces = load_tokenizer(again), sentencepiece.SentencePieceProcessor(str(source / "tokenizer.model"))
    assert tokenizer is not None
    assert tokenizer.encode("a red bike passes the camera") == pieces.encode("a red bike passes the camera")


def opened(directory: Path, image_token_id: int | None = None) -> tuple[ModelSpec, Processing, list[str]]:
    """The model, its prompts, and what was noted."""
    checkpoint, family = Checkpoint.open(directory), family_named("internvl2")
    spec = family.spec_from_checkpoint(checkpoint, Choices(image_token_id=image_token_id))
    return spec, family.processing(spec, checkpoint), checkpoint.notes


def refused(directory: Path, image_token_id: int | None = None) -> str:
    """Where the error is."""
    with pytest.raises(VaExportError) as caught:
        opened(directory, image_token_id)
    assert caught.value.fix
    return str(caught.value.where).removeprefix(f"{directory}/")


def test_a_partial_list_of_added_tokens_is_completed_from_the_other_files(ready: Path) -> None:
    edit(
        ready / "tokenizer_config.json",
        lambda content: content.update(added_tokens_decoder={"256": {"content": "<s>"}, "257": {"content": "</s>"}}),
    )
    spec, _, notes = opened(ready)
    assert (spec.image_token_id, spec.eos_token_ids, notes) == (262, (257, 259), [])


@pytest.mark.parametrize(
    ("stated", "stops"),
    [(65, (65, 257, 259)), ([257, 259, 65], (65, 257, 259)), (None, (257, 259)), ([], (257, 259))],
)
def test_an_answer_ends_at_every_id_that_a_file_says(stated: object, stops: tuple[int, ...], ready: Path) -> None:
    (ready / "generation_config.json").write_text(json.dumps({"eos_token_id": stated}))
    assert opened(ready)[1].stop_token_ids == stops


@pytest.mark.parametrize("stated", ["257", -1, True, [257, None], {"a": 1}, 2.5, 263, [[257]]])
def test_ends_of_answers_that_are_no_ids_are_refused(stated: object, ready: Path) -> None:
    (ready / "generation_config.json").write_text(json.dumps({"eos_token_id": stated}))
    assert refused(ready).startswith("generation_config.json: eos_token_id")


@pytest.mark.parametrize("special", [True, False])
def test_a_tokenizer_larger_than_the_vocabulary_is_refused(special: bool, ready: Path) -> None:
    extra = {"id": 263, "content": "<extra>", "special": special, "normalized": False}
    extra |= {"single_word": False, "lstrip": False, "rstrip": False}
    edit(ready / "tokenizer.json", lambda content: content["added_tokens"].append(extra))
    assert refused(ready) == "tokenizer.json"


def test_a_vocabulary_larger_than_the_model_s_is_refused(ready: Path) -> None:
    edit(ready / "tokenizer.json", lambda content: content["model"]["vocab"].update({"ab": 300}))
    assert refused(ready) == "tokenizer.json"


def test_a_tokenizer_without_the_prompt_s_tokens_is_refused(ready: Path) -> None:
    (ready / "tokenizer_config.json").unlink()
    edit(ready / "tokenizer.json", lambda content: content["added_tokens"].pop())  # <IMG_CONTEXT>
    assert refused(ready) == "tokenizer.json"


def test_two_ids_of_a_prompt_s_token_are_refused_and_of_another_noted(ready: Path) -> None:
    (ready / "added_tokens.json").write_text(json.dumps({"<IMG_CONTEXT>": 261}))
    assert refused(ready) == "added_tokens.json"
    (ready / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 65, "<IMG_CONTEXT>": 262}))
    assert refused(ready) == "added_tokens.json"
    (ready / "added_tokens.json").unlink()
    edit(ready / "tokenizer.json", lambda content: content["model"]["vocab"].update({"<ref>": 7}))
    edit(ready / "tokenizer.json", lambda content: content["model"]["vocab"].pop("ć"))
    edit(ready / "tokenizer_config.json", lambda c: c["added_tokens_decoder"].update({"7": {"content": "<ref>"}}))
    (ready / "added_tokens.json").write_text(json.dumps({"<ref>": 9}))
    spec, _, notes = opened(ready)
    assert spec.image_token_id == 262
    assert len(notes) == 1


def test_another_placeholder_than_the_tokenizer_s_is_refused(ready: Path) -> None:
    assert refused(ready, image_token_id=9) == "image_token_id"
    assert opened(ready, image_token_id=262)[0].image_token_id == 262


def test_the_tokenizer_s_own_rule_says_how_prompts_start(ready: Path) -> None:
    """What `tokenizer.json` does, as Transformers 5, whatever `add_bos_token` says; the id is the tokenizer's."""
    assert opened(ready)[1].bos_token_id == 256
    edit(ready / "config.json", lambda content: content["llm_config"].update(bos_token_id=0))
    _, processing, notes = opened(ready)
    assert (processing.bos_token_id, len(notes)) == (256, 1)
    edit(ready / "tokenizer.json", lambda content: content.update(post_processor=None))
    assert opened(ready)[1].bos_token_id is None
    edit(ready / "tokenizer_config.json", lambda content: content.update(add_bos_token=True, add_eos_token=True))
    _, processing, notes = opened(ready)
    assert processing.bos_token_id is None and any("add_bos_token" in note for note in notes)


def test_a_tokenizer_that_ends_texts_is_refused(ready: Path) -> None:
    ending = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<s>", "type_id": 0}}]
    edit(ready / "tokenizer.json", lambda content: content["post_processor"].update(single=ending))
    assert refused(ready) == "tokenizer.json"


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("tokenizer_config.json", "added_tokens_decoder", {"x": {"content": "<img>"}}),
        ("tokenizer_config.json", "added_tokens_decoder", {"5": {}}),
        ("tokenizer_config.json", "added_tokens_decoder", {"99999999999999999999": {"content": "<img>"}}),
        ("tokenizer_config.json", "added_tokens_decoder", ["<img>"]),
        ("tokenizer_config.json", "add_bos_token", "yes"),
        ("tokenizer_config.json", "bos_token", 7),
        ("tokenizer_config.json", "tokenizer_class", ["x"]),
        ("special_tokens_map.json", "eos_token", {"content": None}),
        ("added_tokens.json", "<img>", "260"),
        ("added_tokens.json", "<img>", -1),
    ],
)
def test_malformed_files_are_named(file: str, key: str, value: object, ready: Path) -> None:
    content = json.loads((ready / file).read_text()) if (ready / file).is_file() else {}
    (ready / file).write_text(json.dumps(content | {key: value}))
    assert refused(ready).startswith(f"{file}: {key}" if file != "added_tokens.json" else file)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"version": "1.0"}', "[" * 5000, "\ufeff{}", "\x00"])
def test_what_is_no_tokenizer_is_refused(text: str, ready: Path) -> None:
    (ready / "tokenizer.json").write_text(text)
    assert refused(ready) == "tokenizer.json"


def test_without_tokenizer_files_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert write_tokenizer(tmp_path / "empty", layout("internlm2-chat"), tmp_path) is None
    assert not (tmp_path / "tokenizer.json").exists()


def test_added_tokens_json_is_enough(source: Path, tmp_path: Path) -> None:
    settings = json.loads((source / "tokenizer_config.json").read_text())
    listed = {entry["content"]: int(number) for number, entry in settings["added_tokens_decoder"].items()}
    (source / "tokenizer_config.json").unlink()
    (source / "added_tokens.json").write_text(json.dumps(listed))
    write_tokenizer(source, layout("internlm2-chat"), tmp_path)
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
    assert family.spec_from_checkpoint(Checkpoint.open(directory), Choices(image_token_id=9)).image_token_id == 9


def test_a_template_without_its_token(tmp_path: Path) -> None:
    """The library finds that when a text is encoded, and panics, which is no Exception."""
    family = family_named("internvl2")
    directory = family.write_tiny_checkpoint(tmp_path / "tiny")
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text())
    content["post_processor"]["special_tokens"] = {}
    path.write_text(json.dumps(content))
    with pytest.raises(VaExportError):
        checkpoint = Checkpoint.open(directory)
        family.processing(family.spec_from_checkpoint(checkpoint), checkpoint)
