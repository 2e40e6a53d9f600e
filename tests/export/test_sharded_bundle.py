"""A bundle whose decoder is in shards: proved, timed, checked again and opened as any other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import va_check, va_export

from va_export.bundle.manifest import read_manifest
from va_export.ops.declaration import DOMAIN
from va_export.runtime.bundle import Bundle
from va_export.tensorrt.inspect_engine import find_plugin_records

SHARDS = ("decoder_0", "decoder_1")


def test_files_and_manifest(sharded_bundle: Path, tiny_bundle: Path) -> None:
    names = {path.name for path in (sharded_bundle / "onnx").iterdir()}
    forms = {f"{shard}{form}" for shard in SHARDS for form in (".onnx", ".onnx.data", "_native.onnx")}
    assert {name for name in names if "decoder" in name} == forms
    data = json.loads((sharded_bundle / "manifest.json").read_text())
    assert data["parity"]["passed"] is True
    assert [data["components"][shard]["layers"] for shard in SHARDS] == [[0, 2], [2, 4]]
    whole = json.loads((tiny_bundle / "manifest.json").read_text())
    assert set(whole["components"]) == {"vision", "embedding", "decoder", "score"}
    assert whole["components"]["decoder"]["layers"] is None


@pytest.mark.usefixtures("needs_engines")
def test_each_shard_has_its_engine(sharded_bundle: Path) -> None:
    components = json.loads((sharded_bundle / "manifest.json").read_text())["components"]
    for shard in SHARDS:
        engine = components[shard]["engines"]["tensorrt-rtx"]
        records = find_plugin_records(sharded_bundle / engine["file"], "AnchoredAttention", "1", DOMAIN)
        assert len(records) == 4 == engine["plugin_records"]  # two layers in two profiles
        assert {name.split(".")[1] for profile in engine["profiles"] for name in profile["ranges"] if "." in name} == {
            str(layer) for layer in range(*components[shard]["layers"])
        }
        assert 50 << 20 < engine["peak_memory_bytes"] < 4 << 30


def test_parity_covers_both_forms_of_all_shards(sharded_bundle: Path) -> None:
    parity = json.loads((sharded_bundle / "parity.json").read_text())
    assert [(run["backend"], run["attention"]) for run in parity["runs"]] == [
        ("onnxruntime", "plugin"),
        ("onnxruntime", "native"),
    ]
    assert all(run["passed"] for run in parity["runs"])


def test_latency_names_the_shards(sharded_bundle: Path) -> None:
    runs = {run["backend"]: run for run in json.loads((sharded_bundle / "latency.json").read_text())["runs"]}
    stages = runs["onnxruntime"]["stages"]
    for stage in ("prefill", "decode_per_token"):
        parts = [stages[f"{stage}/{shard}"] for shard in SHARDS]
        assert all(part["min_ms"] > 0 for part in parts)
        # Means add up; the rest of the stage is the embedding.
        assert sum(part["mean_ms"] for part in parts) < stages[stage]["mean_ms"]
    assert not [stage for stage in runs["torch"]["stages"] if "/" in stage]  # one model there
    page = (sharded_bundle / "report.html").read_text(encoding="utf-8")
    assert "Prefill, decoder_0" in page and "Decode, per token, decoder_1" in page


def test_the_backends_agree(sharded_bundle: Path) -> None:
    ids = np.arange(3, 60)
    results = {}
    for backend, attention in (("onnxruntime", "plugin"), ("onnxruntime", "native"), ("torch", None)):
        with Bundle.open(sharded_bundle, backend, attention=attention) as bundle:
            results[backend, attention] = bundle.generate(input_ids=ids, forced_tokens=[1, 2, 3], return_logits=True)
    expected = results["torch", None].logits
    assert expected is not None and "prefill/decoder_1" in results["onnxruntime", "plugin"].timings
    for result in results.values():
        assert result.logits is not None
        # As tests/runtime/backends/test_torch_backend.py holds the whole decoder to.
        assert np.abs(result.logits - expected).max() < 0.02 * np.abs(expected).max()


def test_va_check_repeats_it(sharded_bundle: Path) -> None:
    outcome = va_check(sharded_bundle, "--latency-iterations", 0, "--json")
    assert outcome.code == 0 and json.loads(outcome.stdout)["passed"] is True, outcome.stderr


@pytest.mark.usefixtures("needs_engines")
def test_an_unchanged_part_is_not_built_again(tmp_path: Path, own_engine_cache: Path) -> None:
    """Another gain changes no engine; another layer count changes the decoder's alone."""
    common = ("--model", "internvl2-tiny", "--target", "sm89", "--no-parity", "--components", "embedding,decoder")
    log = []
    for place, options in enumerate(((), ("--alpha-k", 1.5), ("--num-decoder-layers", 1))):
        cache = ("--engine-cache", tmp_path / "cache")
        outcome = va_export(*common, *cache, *options, "-o", tmp_path / str(place))
        assert outcome.code == 0, outcome.stderr
        lines = [line for line in outcome.stderr.splitlines() if "build" in line]
        log.append([("embedding" in line or "decoder" in line) and "engine cache" in line for line in lines])
    assert log == [[False, False], [True, True], [True, False]]
    engines = [tmp_path / str(place) / "engines" / "tensorrt-rtx" / "embedding.engine" for place in range(3)]
    assert all(engine.samefile(engines[0]) for engine in engines)
    manifest = json.loads((tmp_path / "1" / "manifest.json").read_text())
    assert len(read_manifest(tmp_path / "1").data.files) == len(manifest["files"])
