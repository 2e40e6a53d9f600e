"""Every kind of file that the product reads: a valid one, how it is changed, and what the product does with it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import valid_inputs as inputs
from array_mutations import change_npz, change_safetensors
from byte_mutations import Mutator, change_boxes, change_bytes
from tree_mutations import change_json, change_json_lines, change_toml
from wire_mutations import change_message

Make = Callable[[Path], None]
_QUESTION = "What moves? 敏捷 <b> 🚲"


@dataclass(frozen=True)
class Kind:
    """One row of the table.

    Attributes:
        make: name of the valid input in `MAKERS`; kinds share them.
        files: glob patterns of the files of which one is changed.
        mutate: one change to its bytes.
        open: what the product does with the folder.
        resealed: the bundle's manifest says the changed file's size and hash, as who damages one on purpose would.
    """

    name: str
    make: str
    files: tuple[str, ...]
    mutate: Mutator
    open: Callable[[Path], None]
    resealed: bool = field(default=False, kw_only=True)


# What the kinds need, for whoever forks: imported once, so that a case costs a fork.
IMPORTED = (
    *("test_document_forms", "va_export.runtime.bundle", "va_export.runtime.video", "va_export.proof.run"),
    *("va_export.export.source", "va_export.export.plan", "va_export.export.shard_plan", "va_export.report.html"),
    *("va_export.models.patch_prompt", "va_export.models.llava.tokenizer", "va_export.models.tokenized"),
    *("va_export.models.internvl2.chat_template", "va_export.models.internvl2.layouts"),
    *("va_export.models.internvl2.tokenizer", "va_export.runtime.backends.onnxruntime", "va_export.progress"),
    *("onnxruntime", "onnx", "av", "av.subtitles", "tokenizers", "safetensors", "scipy.linalg", "jinja2"),
    *("PIL.PngImagePlugin", "PIL.JpegImagePlugin", "PIL.GifImagePlugin", "PIL.BmpImagePlugin", "PIL.PpmImagePlugin"),
    *("array_api_compat.numpy", "encodings.utf_8_sig", "encodings.cp437"),
)
MAKERS: dict[str, Make] = {
    "checkpoint": inputs.write_checkpoint,
    "transformers checkpoint": inputs.write_transformers_checkpoint,
    "patch checkpoint": partial(inputs.write_checkpoint_of, "qwen2_5_vl"),
    "deep checkpoint": partial(inputs.write_checkpoint_of, "qwen3_vl"),
    "pooled checkpoint": partial(inputs.write_checkpoint_of, "llava"),
    "patch processing": partial(inputs.write_processing_of, "qwen2_5_vl"),
    "stepped processing": partial(inputs.write_processing_of, "qwen3_vl"),
    "sharded checkpoint": inputs.write_sharded_checkpoint,
    "sentencepiece checkpoint": inputs.write_sentencepiece_checkpoint,
    "byte-level checkpoint": inputs.write_byte_level_checkpoint,
    "recipe": inputs.write_recipe,
    "documents": inputs.write_documents,
    "score cache": inputs.write_score_cache,
    "clips": inputs.write_clips,
}


def _bundle(folder: Path) -> Any:
    from va_export.runtime.bundle import Bundle

    return Bundle.open(folder, check_hashes=True)


def _frames(count: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (count, 40, 56, 3), dtype=np.uint8)


def answer(folder: Path) -> None:
    """Open a bundle, ask it, and put its answer and the prompt into words."""
    with _bundle(folder) as bundle:
        prepared = bundle.prepare(_frames(2), _QUESTION)
        tokens = bundle.answer(prepared, 2).tokens
        if bundle.tokenizer is not None:
            stream = bundle.tokenizer.stream()
            for token in (*prepared.input_ids[0, :50], *tokens, 0, 1, 10**6):
                stream.push(int(token))
            stream.finish()


def answer_portable(folder: Path) -> None:
    """The same with attention in standard operators, scored by the bundle's own graph."""
    from va_export.runtime.bundle import Bundle

    with Bundle.open(folder, check_hashes=True, attention="native", score="graph") as bundle:
        bundle.answer(bundle.prepare(_frames(2), _QUESTION), 2)


def check(folder: Path) -> None:
    """`va-check`."""
    from va_export.progress import StageDisplay
    from va_export.proof.run import check_bundle

    check_bundle(folder, "onnxruntime", StageDisplay(), iterations=0)


def report(folder: Path) -> None:
    """The HTML page of a bundle."""
    from va_export.bundle.manifest import read_manifest
    from va_export.report.html import render_report

    render_report(folder, read_manifest(folder).data)


def open_manifest(folder: Path) -> None:
    """An answer, and the page."""
    answer(folder)
    report(folder)


def open_checkpoint(folder: Path) -> None:
    """Everything that an export does before it traces, and all weights read."""
    from va_export.export.plan import plan_export
    from va_export.export.recipe import ExportOptions, Recipe
    from va_export.export.shard_plan import plan_shards
    from va_export.export.source import open_source
    from va_export.runtime.tokenizer import load_tokenizer

    options = ExportOptions(Recipe(name="fuzz", checkpoint=str(folder)), folder.with_name("bundle"), onnx_only=True)
    with tempfile.TemporaryDirectory() as scratch:
        source = open_source(options, Path(scratch))
        shards = plan_shards(options, source, builds_engines=False)
        plan_export(options, source, (), shards)
        processing = source.processing
        source.family.write_tokenizer(source.checkpoint, Path(scratch))
        tokenizer = load_tokenizer(Path(scratch))
        if tokenizer is not None:
            ids = processing.input_ids(_QUESTION, 2, tokenizer)
            tokenizer.decode([int(token) for token in ids[0, -50:] if token >= 0])  # a marker is no token
        for weight in source.weight_map.values():
            source.checkpoint.tensor(weight.checkpoint_name)


def open_processing(folder: Path) -> None:
    """A prompt about a video and an image, made by the host alone."""
    from va_export.runtime.processing import Image, Video, read_processing
    from va_export.runtime.tokenizer import load_tokenizer

    processing, tokenizer = read_processing(folder / "processing.json"), load_tokenizer(folder)
    assert tokenizer is not None
    frames = _frames(3)
    processing.prepare([Video(frames), Image(frames[0])], _QUESTION, tokenizer)
    processing.prepare_ids(processing.input_ids(_QUESTION, 3, tokenizer), processing.given(frames), 4)


def open_recipe(folder: Path) -> None:
    """A recipe and the options made of it."""
    from va_export.export.recipe import ExportOptions, resolve_model, with_overrides

    recipe = resolve_model(str(folder / "recipe.toml"))
    ExportOptions(with_overrides(recipe, frames=4, limits={"max_frames": 8}), folder / "bundle")


def open_engine_cache(folder: Path) -> None:
    """An engine wanted again: from the cache, or built where that is damaged."""
    from test_document_forms import INFO

    from va_export.tensorrt.cache_key import CacheKey
    from va_export.tensorrt.engine_cache import EngineCache
    from va_export.tensorrt.engine_info import EngineInfo

    destination = folder / "vision.engine"

    def build() -> EngineInfo:
        destination.write_bytes(inputs.ENGINE)
        return INFO

    EngineCache(folder / "cache").obtain(CacheKey(inputs.ENGINE_KEY, {"graph": "1"}), destination, build)
    if destination.read_bytes() != inputs.ENGINE:
        raise AssertionError("a damaged engine came out of the cache")


def open_journal(folder: Path) -> None:
    """What an export that is taken up again asks of its journal."""
    from test_document_forms import DOCUMENTS

    from va_export.bundle.journal import Journal, Record

    journal = Journal(folder / "journal.jsonl")
    records = [record for record in DOCUMENTS.values() if isinstance(record, Record)]
    for record in records:
        journal.of(type(record))
    journal.append(records[0])
    if len(Journal(journal.path)) != len(journal):
        raise AssertionError("a record that was appended is not read again")


def open_evidence(folder: Path) -> None:
    """What GPUs measured."""
    from va_export.evidence.document import failures, read_evidence

    failures(read_evidence(folder / "gpu-attention.json"))


def open_score_cache(folder: Path) -> None:
    """A cached score: itself, or nothing."""
    from va_export.runtime.score_cache import ScoreCache

    found = ScoreCache(folder).load("key", 4)
    if found is not None and (found.sharing_score.shape != (4,) or found.labels.shape != (4,)):
        raise AssertionError("a score of another size came out of the cache")


def open_clip(folder: Path) -> None:
    """Frames of the one clip in the folder."""
    from va_export.runtime.video import read_frames

    (clip,) = folder.glob("*.*")
    for sampling in ("segment-midpoint", "fps=3"):
        frames = read_frames(clip, 4, sampling, allow_truncated=True)  # what is cut short is decoded too
        if not len(frames.pixels) == len(frames.indices) == len(frames.timestamps) <= 4:
            raise AssertionError("another number of frames than was asked for")


KINDS = {
    kind.name: kind
    for kind in (
        Kind("manifest", "bundle", ("manifest.json",), change_json, open_manifest),
        Kind("processing", "bundle", ("processing.json",), change_json, answer, resealed=True),
        Kind("patch processing", "patch processing", ("processing.json",), change_json, open_processing),
        Kind("stepped processing", "stepped processing", ("processing.json",), change_json, open_processing),
        Kind("bundle tokenizer", "bundle", ("tokenizer.json",), change_json, answer, resealed=True),
        Kind("parity", "bundle", ("parity.json",), change_json, report, resealed=True),
        Kind("latency", "bundle", ("latency.json",), change_json, report, resealed=True),
        Kind("reference in the report", "bundle", ("reference.npz",), change_npz, report, resealed=True),
        Kind("reference", "bundle", ("reference.npz",), change_npz, check, resealed=True),
        Kind("hashed files", "bundle", ("*.npz", "onnx/*", "tokenizer.json"), change_bytes, check),
        Kind("graph", "bundle", ("onnx/*r.onnx", "onnx/[ve]*.onnx"), change_message, answer, resealed=True),
        Kind("portable graph", "bundle", ("onnx/*e.onnx",), change_message, answer_portable, resealed=True),
        Kind("weights", "bundle", ("onnx/*.data",), change_bytes, answer, resealed=True),
        Kind("checkpoint config", "checkpoint", ("config.json",), change_json, open_checkpoint),
        Kind(
            "transformers checkpoint config",
            "transformers checkpoint",
            ("config.json", "chat_template.json"),
            change_json,
            open_checkpoint,
        ),
        Kind("chat template", "transformers checkpoint", ("chat_template.jinja",), change_bytes, open_checkpoint),
        Kind("patch checkpoint config", "patch checkpoint", ("config.json", "pre*.json"), change_json, open_checkpoint),
        Kind("deep checkpoint config", "deep checkpoint", ("config.json", "*pre*.json"), change_json, open_checkpoint),
        Kind("pooled checkpoint config", "pooled checkpoint", ("config.json",), change_json, open_checkpoint),
        Kind("generation config", "checkpoint", ("generation_config.json",), change_json, open_checkpoint),
        Kind("tokenizer config", "checkpoint", ("tokenizer_config.json",), change_json, open_checkpoint),
        Kind(
            "special tokens",
            "byte-level checkpoint",
            ("added*.json", "s*_map.json"),
            change_json,
            open_checkpoint,
        ),
        Kind("checkpoint tokenizer", "checkpoint", ("tokenizer.json",), change_json, open_checkpoint),
        Kind("safetensors", "checkpoint", ("*.safetensors",), change_safetensors, open_checkpoint),
        Kind("safetensors index", "sharded checkpoint", ("*.index.json",), change_json, open_checkpoint),
        Kind("sentencepiece", "sentencepiece checkpoint", ("tokenizer.model",), change_message, open_checkpoint),
        Kind("vocabulary", "byte-level checkpoint", ("vocab.json",), change_json, open_checkpoint),
        Kind("merges", "byte-level checkpoint", ("merges.txt",), change_bytes, open_checkpoint),
        Kind("recipe", "recipe", ("recipe.toml",), change_toml, open_recipe),
        Kind("evidence", "documents", ("gpu-attention.json",), change_json, open_evidence),
        Kind("journal", "documents", ("journal.jsonl",), change_json_lines, open_journal),
        Kind("engine cache", "documents", ("cache/*",), change_json, open_engine_cache),
        Kind("score cache", "score cache", ("*.npz",), change_npz, open_score_cache),
        Kind("video", "clips", ("*.*",), change_boxes, open_clip),
    )
}
