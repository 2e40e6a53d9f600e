"""Byte-level BPE from vocab.json and merges.txt, against Hugging Face's own Qwen2 tokenizer on the same files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from refusals import refused
from transformers import Qwen2Tokenizer

from va_export.checkpoint.files import Checkpoint
from va_export.models import family_named
from va_export.models.checkpoint_tokenizer import write_tokenizer
from va_export.models.internvl2.tokenizer import layout
from va_export.runtime.tokenizer import load_tokenizer

ADDED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
TEXTS = [
    "What's moving in this video, and where? It'LL be 1234 frames.\n\n  Two  spaces ",
    "视频中有一辆红色的自行车，它在做什么？",
    "Что происходит на видео? मोटरसाइकिल دراجة 자전거 🚲🚲",
    "e\u0301 is normalised to é; ﬁ is not",
    "<|im_start|>user\nFrame1: <img><IMG_CONTEXT><IMG_CONTEXT></img>\n?<|im_end|><|im_start|>assistant\n",
    " leading\ttab\r\nand CR",
    "",
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vocab.json, merges.txt and tokenizer_config.json as the 1B checkpoint has them, learned from a few lines."""
    directory = tmp_path_factory.mktemp("qwen2")
    learned = tokenizers.ByteLevelBPETokenizer()
    learned.train_from_iterator([text for text in TEXTS for _ in range(20)], vocab_size=600, show_progress=False)
    learned.save_model(str(directory))
    first = learned.get_vocab_size()
    added = {str(first + i): {"content": token, "special": True} for i, token in enumerate(ADDED)}
    settings = {"added_tokens_decoder": added, "tokenizer_class": "Qwen2Tokenizer", "bos_token": None}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_are_those_of_hugging_face(text: str, source: Path, tmp_path: Path) -> None:
    theirs = Qwen2Tokenizer.from_pretrained(source)
    assert write_tokenizer(source, layout("internlm2-chat"), tmp_path) == tmp_path / "tokenizer.json"
    ours = load_tokenizer(tmp_path)
    assert ours is not None
    ids = ours.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_merges_are_used(source: Path, tmp_path: Path) -> None:
    write_tokenizer(source, layout("internlm2-chat"), tmp_path)
    ours = load_tokenizer(tmp_path)
    assert ours is not None and len(ours.encode(TEXTS[0])) < len(TEXTS[0].encode()) // 2


def test_a_checkpoint_of_such_files_has_a_tokenizer_and_starts_without_bos(source: Path, tmp_path: Path) -> None:
    family = family_named("internvl2")
    directory = family.write_tiny_checkpoint(tmp_path / "tiny")
    config = json.loads((directory / "config.json").read_text())
    config["llm_config"]["architectures"] = ["Qwen2ForCausalLM"]
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").unlink()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (directory / name).write_bytes((source / name).read_bytes())
    checkpoint = Checkpoint.open(directory)
    assert checkpoint.has_tokenizer
    spec = family.spec_from_config(checkpoint.config | {"llm_config": {**config["llm_config"], "vocab_size": 1000}})
    assert family.processing(spec, checkpoint).bos_token_id is None


@pytest.mark.parametrize("keep", [0, 1, 0.5, -1])
def test_merges_that_were_cut_short_are_refused(keep: float, source: Path, tmp_path: Path) -> None:
    """The library takes them, and spells every word in more pieces than the model was trained on."""
    directory = tmp_path / "cut"
    directory.mkdir()
    for path in source.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    lines = (source / "merges.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = lines[: int(keep * len(lines)) if 0 < keep < 1 else int(keep)]
    (directory / "merges.txt").write_text("".join(kept), encoding="utf-8")
    with refused(directory / "merges.txt", max(len(kept) - 1, 0)):
        write_tokenizer(directory, layout("internlm2-chat"), tmp_path)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b""])
def test_a_byte_order_mark_changes_nothing(name: str, mark: bytes, source: Path, tmp_path: Path) -> None:
    directory = tmp_path / "marked"
    directory.mkdir()
    for path in source.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    (directory / name).write_bytes(mark + (source / name).read_bytes())
    write_tokenizer(directory, layout("internlm2-chat"), tmp_path)
    ours = load_tokenizer(tmp_path)
    assert ours is not None
    assert ours.encode(TEXTS[0]) == Qwen2Tokenizer.from_pretrained(source).encode(TEXTS[0], add_special_tokens=False)


@pytest.mark.parametrize(
    ("name", "content", "where", "named"),
    [
        ("merges.txt", "#version: 0.2\na b c\n", "merges.txt", []),
        ("merges.txt", "qq qq\n", "", ["qq"]),
        ("merges.txt", None, "merges.txt", []),
        ("merges.txt", "version https://git-lfs.github.com/spec/v1\nsize 9\n", "merges.txt", ["Git LFS"]),
        ("vocab.json", "[]", "vocab.json", ["list"]),
        ("vocab.json", '{"a": 0, "b": 2147483647}', "", [1]),  # saving it would take gigabytes
        ("vocab.json", '{"a": 0, "b": 1.5}', "vocab.json", []),
        ("tokenizer_config.json", '{"tokenizer_class": "GPT2Tokenizer"}', "", ["GPT2Tokenizer", "vocab.json"]),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"9999": {"content": "<img>"}}}', "", ["<img>", 9999]),
    ],
)
def test_broken_files_are_refused(
    name: str, content: str | None, where: str, named: list[object], source: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "broken"
    directory.mkdir()
    for path in source.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    if content is None:
        (directory / name).unlink()
    else:
        (directory / name).write_text(content)
    with refused(directory / where, *named):
        write_tokenizer(directory, layout("internlm2-chat"), tmp_path)
