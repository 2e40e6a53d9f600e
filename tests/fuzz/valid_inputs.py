"""Valid files of every kind that the product reads, small, made by the product itself or by the library that owns the
format. Each function fills a folder; all of them run in a child (`fork_case.prepare`)."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

ENGINE, ENGINE_KEY = b"engine", "0123456789abcdef" * 4
PROMPT_TOKENS = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
CLIPS = (
    *(("clip.mp4", "h264"), ("moved.mov", "mpeg4"), ("clip.mkv", "h264"), ("clip.webm", "vp9"), ("clip.avi", "mjpeg")),
    *(("clip.gif", "gif"), ("vp8.webm", "vp8"), ("prores.mov", "prores_ks"), ("clip.ts", "mpeg2video")),
)
_TEXT = "What moves in this video, and where?\nTwo  spaces, 1234 frames; 敏捷的棕色狐狸 über быстрая aaaa abab"


def write_bundle(source: Path | None, folder: Path) -> None:
    """A bundle of internvl2-tiny without engines; `source`: one that was exported already."""
    from va_export.bundle.manifest import bundle_files, read_manifest
    from va_export.documents import encode

    if source is None:
        from va_export.export.recipe import ExportOptions, resolve_model
        from va_export.pipeline import export
        from va_export.progress import StageDisplay

        source = folder.with_name("exported")
        options = ExportOptions(resolve_model("internvl2-tiny"), source, onnx_only=True, latency_iterations=1)
        export(options, StageDisplay())
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("engines", "*.so", "report.html"))
    document = read_manifest(source).data
    for name in document.files:
        if name.endswith(".so"):  # 20 MB that nothing here loads
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"\x7fELF")
    entries = {name: {"bytes": path.stat().st_size, "sha256": _digest(path)} for name, path in bundle_files(folder)}
    plain = msgspec.to_builtins(document)
    plain["files"] = {name: entries[name] for name in document.files if name in entries}
    for component in plain["components"].values():
        component["engines"] = {}
    (folder / "manifest.json").write_bytes(encode(plain))


def write_checkpoint(folder: Path) -> None:
    """The tiny checkpoint, with every settings file that a published one has."""
    from va_export.models import family_named

    family_named("internvl2").write_tiny_checkpoint(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    tokens = {entry["content"]: int(number) for number, entry in settings["added_tokens_decoder"].items()}
    files = {
        "generation_config.json": {"eos_token_id": [tokens["</s>"], tokens["<|im_end|>"]], "bos_token_id": 256},
        "special_tokens_map.json": {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}},
        "added_tokens.json": tokens,
        "preprocessor_config.json": {"image_mean": [0.485, 0.456, 0.406], "do_resize": True, "crop_size": 112},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1))


def write_transformers_checkpoint(folder: Path) -> None:
    """The tiny checkpoint over Qwen2 in transformers' layout, with a chat template in every file that may hold one."""
    from transformers_layout import write_in_transformers_layout

    from va_export.models.internvl2.tiny import write_tiny_checkpoint

    with tempfile.TemporaryDirectory() as scratch:
        decoder = {"architectures": ["Qwen2ForCausalLM"], "rope_scaling": None}
        original = write_tiny_checkpoint(Path(scratch), llm_config=decoder)
        write_in_transformers_layout(original, folder, "class", 262)
    template = "{% for message in messages %}{{ message }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))


def write_checkpoint_of(family: str, folder: Path) -> None:
    """A checkpoint of another family: frames that keep their sizes, times in the prompt, a tower's sizes that only its
    tensors tell."""
    from va_export.models import family_named

    family_named(family).write_tiny_checkpoint(folder)


def write_processing_of(name: str, folder: Path) -> None:
    """What the host of another family's bundle needs."""
    from va_export.checkpoint.files import Checkpoint
    from va_export.documents import encode
    from va_export.models import family_named

    write_checkpoint_of(name, folder)
    family, checkpoint = family_named(name), Checkpoint.open(folder)
    processing = family.processing(family.spec_from_checkpoint(checkpoint), checkpoint)
    (folder / "processing.json").write_bytes(encode(processing))


def write_sharded_checkpoint(folder: Path) -> None:
    """The same in two files and an index."""
    from safetensors.numpy import load_file, save_file

    write_checkpoint(folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, half in halves.items():
        save_file({name: weights[name] for name in half}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, half in halves.items() for name in half}
    index = {"metadata": {"total_size": sum(value.nbytes for value in weights.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_sentencepiece_checkpoint(folder: Path) -> None:
    """A checkpoint whose tokenizer is a SentencePiece model."""
    import io

    import sentencepiece

    write_checkpoint(folder)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_TEXT.split("\n") * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=263 - len(PROMPT_TOKENS),
        hard_vocab_limit=False,
        byte_fallback=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()
    _without_tokenizer_json(folder, first=pieces, tokenizer_class="InternLM2Tokenizer")


def write_byte_level_checkpoint(folder: Path) -> None:
    """A checkpoint whose tokenizer is `vocab.json` and `merges.txt`."""
    import tokenizers

    write_checkpoint(folder)
    learned = tokenizers.ByteLevelBPETokenizer()
    # All 256 bytes and no merge more than the model has ids for.
    learned.train_from_iterator([_TEXT] * 9, vocab_size=263 - len(PROMPT_TOKENS), show_progress=False)
    learned.save_model(str(folder))
    _without_tokenizer_json(folder, first=learned.get_vocab_size(), tokenizer_class="Qwen2Tokenizer")


def _without_tokenizer_json(folder: Path, *, first: int, tokenizer_class: str) -> None:
    tokens = {str(first + at): {"content": token, "special": True} for at, token in enumerate(PROMPT_TOKENS)}
    settings = {"added_tokens_decoder": tokens, "tokenizer_class": tokenizer_class, "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "added_tokens.json").write_text(json.dumps({entry["content"]: int(n) for n, entry in tokens.items()}))
    (folder / "tokenizer.json").unlink()


def write_recipe(folder: Path) -> None:
    """A recipe with every table."""
    recipe = """checkpoint = "owner/name"\nrevision = "main"\nframes = 8\nseed = 0\n
[gains]\nalpha_k = 9.5\nalpha_v = 2.5\nalpha_q = 4.0\n
[score]\nn_subspaces = 8\n
[limits]\nmax_frames = 16\nmax_input_len = 8192\n"""
    (folder / "recipe.toml").write_text(recipe)


def write_documents(folder: Path) -> None:
    """What `tests/test_document_forms.py` writes out in full: a journal, an engine's cache entry, evidence."""
    from test_document_forms import DOCUMENTS, EVIDENCE, INFO

    from va_export.bundle.journal import Record
    from va_export.documents import encode
    from va_export.tensorrt.engine_cache import Entry

    records = [encode(record, indent=None) for record in DOCUMENTS.values() if isinstance(record, Record)]
    (folder / "journal.jsonl").write_bytes(b"".join(records))
    (folder / "gpu-attention.json").write_bytes(encode(EVIDENCE))
    info = msgspec.structs.replace(INFO, size_bytes=len(ENGINE))
    (folder / "cache").mkdir()
    (folder / "cache" / f"{ENGINE_KEY}.engine").write_bytes(ENGINE)
    entry = Entry({"graph": "1"}, hashlib.sha256(ENGINE).hexdigest(), info)
    (folder / "cache" / f"{ENGINE_KEY}.json").write_bytes(encode(entry))


def write_score_cache(folder: Path) -> None:
    """A cached score of four tokens."""
    from va_export.runtime.score_cache import ScoreCache, Scored

    score = Scored(np.linspace(0, 1, 4, dtype=np.float32), np.arange(4, dtype=np.int64) % 2, 7)
    ScoreCache(folder).store("key", score)


def write_clips(folder: Path) -> None:
    """A second of noise that moves, in every container and codec of `CLIPS` that this PyAV has; one with sound."""
    import av

    for name, codec in CLIPS:
        if codec not in av.codecs_available:
            continue
        with av.open(str(folder / name), "w") as container:
            stream: Any = container.add_stream(codec, rate=Fraction(10))
            stream.width, stream.height, stream.gop_size = 48, 32, 4
            stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p", "prores_ks": "yuv422p10le"}.get(codec, "yuv420p")
            for picture in _pictures():
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
            container.mux(stream.encode(None))


def _pictures() -> Iterator[np.ndarray[Any, Any]]:
    noise = np.frombuffer(random.Random(0).randbytes(32 * 96 * 3), dtype=np.uint8).reshape(32, 96, 3)
    for shift in range(10):
        yield np.ascontiguousarray(noise[:, 4 * shift : 4 * shift + 48])


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
