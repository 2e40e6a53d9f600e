"""The main path: what an export leaves behind is complete, true, and computes what the official code computed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import TINY, va_export
from refusals import refused

from va_export.native import plugin_contract
from va_export.ops.anchored_attention import schema
from va_export.ops.declaration import DOMAIN
from va_export.runtime.bundle import Bundle
from va_export.runtime.generation import Generation
from va_export.tensorrt.inspect_engine import find_plugin_records

Golden = Mapping[str, np.ndarray[Any, Any]]
FORMS = [("onnxruntime", "plugin"), ("onnxruntime", "native"), ("torch", None)]
FILES = {
    "config.json",
    "manifest.json",
    "onnx/decoder.onnx",
    "onnx/decoder.onnx.data",
    "onnx/decoder_native.onnx",
    "onnx/embedding.onnx",
    "onnx/embedding.onnx.data",
    "onnx/score.onnx",
    "onnx/vision.onnx",
    "onnx/vision.onnx.data",
    "parity.json",
    "latency.json",
    "processing.json",
    "reference.npz",
    "report.html",
    "tokenizer.json",
}
ENGINE_FILES = {
    "plugins/libva_plugins.so",
    "engines/tensorrt-rtx/decoder.engine",
    "engines/tensorrt-rtx/embedding.engine",
    "engines/tensorrt-rtx/score.engine",
    "engines/tensorrt-rtx/vision.engine",
}


def cosine(actual: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    a, b = actual.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def official_run(bundle: Bundle, golden: Golden, **overrides: Any) -> Generation:
    """The golden run: its frames, its prompt, the gains as its official code rounded them."""
    arguments: dict[str, Any] = {
        "max_new_tokens": 9,
        "ignore_stop": True,
        "return_logits": True,
        "key_log_gain": golden["key_log_gain_official"],
        "value_gain": golden["gain_v"],
    }
    return bundle.generate(golden["pixel_values"], golden["input_ids"], **{**arguments, **overrides})


def files_of(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def test_bundle_is_complete(tiny_bundle: Path, can_build_engines: bool) -> None:
    expected = FILES | ENGINE_FILES if can_build_engines else FILES
    assert files_of(tiny_bundle) >= expected
    assert files_of(tiny_bundle) - expected <= {"plugins/libva_plugins.so"}
    assert [path.name for path in tiny_bundle.parent.iterdir()] == ["bundle"]  # no lock, no leftover


def test_manifest_tells_true_sizes_and_hashes(tiny_bundle: Path) -> None:
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    assert set(manifest["files"]) == files_of(tiny_bundle) - {"manifest.json"}
    for name, entry in manifest["files"].items():
        content = (tiny_bundle / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}, name
    assert manifest["parity"]["passed"] is True
    assert manifest["parity"]["verdict"].startswith("parity passed on ONNX Runtime, CPU; engines not ")
    assert manifest["video"]["file"] == "bikes.mp4"
    assert manifest["model"]["weights"] == "random"


@pytest.mark.parametrize("name", ["vision", "embedding", "decoder", "decoder_native"])
def test_onnx_files_are_valid_and_carry_their_weights_beside_them(tiny_bundle: Path, name: str) -> None:
    path = tiny_bundle / "onnx" / f"{name}.onnx"
    schema()  # registers the custom op
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    locations = {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    assert locations == {f"{name.removesuffix('_native')}.onnx.data"}


def test_decoder_calls_the_op_and_carries_its_body(tiny_bundle: Path) -> None:
    model = onnx.load(tiny_bundle / "onnx" / "decoder.onnx", load_external_data=False)
    calls = [node for node in model.graph.node if node.op_type == "AnchoredAttention" and node.domain == DOMAIN]
    assert len(calls) == 2  # one a layer
    body = next(function for function in model.functions if function.name == "AnchoredAttention")
    assert body.domain == DOMAIN and {node.domain for node in body.node} <= {"", "ai.onnx"}
    native = onnx.load(tiny_bundle / "onnx" / "decoder_native.onnx", load_external_data=False)
    assert {node.domain for node in native.graph.node} <= {"", "ai.onnx"}
    assert sum(node.op_type == "Attention" for node in native.graph.node) == 2


def test_the_score_is_one_node_with_its_body_and_the_recipes_settings(tiny_bundle: Path) -> None:
    path = tiny_bundle / "onnx" / "score.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path)
    (node,), (body,) = model.graph.node, model.functions
    assert (node.op_type, node.domain) == (body.name, body.domain) == ("SubspaceScore", DOMAIN)
    settings = json.loads((tiny_bundle / "manifest.json").read_text())["score"]
    written = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert written == pytest.approx(settings)
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == [
        "visual_tokens", "sharing_score", "labels"
    ]  # fmt: skip


@pytest.mark.usefixtures("needs_engines")
def test_engines_are_built_for_all_targets_and_hold_the_plugin(tiny_bundle: Path) -> None:
    components = json.loads((tiny_bundle / "manifest.json").read_text())["components"]
    for name, entry in components.items():
        engine = entry["engines"]["tensorrt-rtx"]
        assert engine["targets"] == ["sm80", "sm86", "sm89", "sm120"]
        assert engine["bytes"] == (tiny_bundle / engine["file"]).stat().st_size
        op_type = "SubspaceScore" if name == "score" else "AnchoredAttention"
        records = find_plugin_records(tiny_bundle / engine["file"], op_type, "1", DOMAIN)
        # Two layers in two profiles; the score where the library has a plugin for it, else from its body.
        served = int(any(op["name"] == "SubspaceScore" for op in plugin_contract()["ops"]))
        assert len(records) == {"decoder": 4, "score": served}.get(name, 0)
        assert engine["plugin_records"] == len(records)


@pytest.mark.usefixtures("needs_engines")
def test_native_attention_needs_no_plugin_and_parity_may_be_left_out(tmp_path: Path) -> None:
    options = ("--attention", "native", "--target", "sm89", "--num-decoder-layers", 1, "--no-parity")
    outcome = va_export(*TINY, "-o", tmp_path / "b", *options)
    assert outcome.code == 0 and "parity not run" in outcome.stderr, outcome.stderr
    engine = tmp_path / "b" / "engines" / "tensorrt-rtx" / "decoder.engine"
    assert engine.is_file() and find_plugin_records(engine, "AnchoredAttention", "1", DOMAIN) == ()
    assert not {"reference.npz", "parity.json", "latency.json"} & files_of(tmp_path / "b")
    assert not (tmp_path / "b" / "plugins").exists()
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["plugin"] is None and manifest["parity"]["passed"] is None
    assert manifest["components"]["decoder"]["engines"]["tensorrt-rtx"]["targets"] == ["sm89"]
    with Bundle.open(tmp_path / "b") as bundle:
        assert bundle.attention == "native"
        assert bundle.generate(input_ids=[1, 2, 3], max_new_tokens=2, ignore_stop=True).tokens.shape == (2,)


@pytest.mark.parametrize(("backend", "attention"), FORMS)
def test_float32_reproduces_the_official_run(
    golden_bundle: Callable[[str], Path], golden: Golden, backend: str, attention: str | None
) -> None:
    with Bundle.open(golden_bundle("fp32"), backend, attention=attention) as bundle:
        result = official_run(bundle, golden)
    assert result.visual_tokens is not None and result.logits is not None
    assert np.abs(result.visual_tokens - golden["visual_tokens"]).max() < 1e-3
    assert np.abs(result.logits - golden["decode_logits"]).max() < 5e-3
    assert result.tokens[:8].tolist() == golden["tokens"].tolist()


def test_float32_scores_as_the_official_run(golden_bundle: Callable[[str], Path], golden: Golden) -> None:
    with Bundle.open(golden_bundle("fp32")) as bundle:
        result = bundle.generate(golden["pixel_values"], golden["input_ids"], max_new_tokens=1)
    assert result.sharing_score is not None
    assert np.abs(result.sharing_score - golden["sharing_score"]).max() < 2e-3


def test_anchors_off_reproduce_the_plain_official_run(golden_bundle: Callable[[str], Path], golden: Golden) -> None:
    with Bundle.open(golden_bundle("fp32")) as bundle:
        run = {"pixel_values": golden["pixel_values"], "input_ids": golden["input_ids"], "max_new_tokens": 1}
        plain = bundle.generate(**run, anchors=False, return_logits=True)
        off = bundle.generate(**run, alpha_k=0.0, alpha_v=0.0, return_logits=True)
        anchored = bundle.generate(**run, return_logits=True)
        other = bundle.generate(**run, alpha_k=2.0, alpha_v=3.0, return_logits=True)
    assert plain.logits is not None and off.logits is not None
    assert anchored.logits is not None and other.logits is not None
    assert np.abs(plain.logits - golden["plain_last_logits"]).max() < 5e-3
    assert plain.sharing_score is None
    np.testing.assert_array_equal(off.logits, plain.logits)
    assert np.abs(anchored.logits - plain.logits).max() > 0.1
    assert np.abs(other.logits - anchored.logits).max() > 0.1  # the gains are run-time inputs


@pytest.mark.parametrize(("backend", "attention"), FORMS)
def test_float16_stays_near_the_official_run(
    golden_bundle: Callable[[str], Path], golden: Golden, backend: str, attention: str | None
) -> None:
    with Bundle.open(golden_bundle("fp16"), backend, attention=attention) as bundle:
        forced = golden["decode_logits"].argmax(-1)
        result = official_run(bundle, golden, forced_tokens=forced)
    assert result.visual_tokens is not None and result.logits is not None
    assert cosine(result.visual_tokens, golden["visual_tokens"]) >= 0.999
    rows = zip(result.logits, golden["decode_logits"], strict=True)
    assert min(cosine(row, expected) for row, expected in rows) >= 0.999


def test_a_checkpoint_without_tokenizer_takes_ids_and_says_so(golden_bundle: Callable[[str], Path]) -> None:

    directory = golden_bundle("fp32")
    assert "tokenizer.json" not in files_of(directory)
    assert json.loads((directory / "manifest.json").read_text())["tokenizer"] is None
    with Bundle.open(directory) as bundle, refused(directory) as caught:
        bundle.prompt("What moves?", 8)
    assert caught.value.fix is not None and "input_ids" in caught.value.fix


def test_vision_alone(tmp_path: Path) -> None:
    outcome = va_export(*TINY, "-o", tmp_path / "b", "--components", "vision", "--onnx-only")
    assert outcome.code == 0 and "parity not run" in outcome.stderr
    assert {name for name in files_of(tmp_path / "b") if "onnx" in name} == {
        "onnx/vision.onnx",
        "onnx/vision.onnx.data",
    }
    with Bundle.open(tmp_path / "b") as bundle:
        frames = {"pixel_values": np.zeros((3, 3, 112, 112), np.float32)}
        assert bundle.backend.run("vision", frames)["visual_tokens"].shape == (48, 128)


def test_first_decoder_layers_in_bfloat16(tmp_path: Path) -> None:
    options = ("--num-decoder-layers", 1, "--precision", "bf16", "--onnx-only", "--latency-iterations", 0)
    outcome = va_export(*TINY, "-o", tmp_path / "b", *options)
    assert outcome.code == 0 and "parity passed" in outcome.stderr, outcome.stderr
    model = onnx.load(tmp_path / "b" / "onnx" / "decoder.onnx", load_external_data=False)
    assert sum(node.op_type == "AnchoredAttention" for node in model.graph.node) == 1
    assert onnx.TensorProto.BFLOAT16 in {tensor.data_type for tensor in model.graph.initializer}
    assert not (tmp_path / "b" / "engines").exists() and not (tmp_path / "b" / "latency.json").exists()
    parity = json.loads((tmp_path / "b" / "parity.json").read_text())
    assert [run["backend"] for run in parity["runs"]] == ["torch"]  # ONNX Runtime's CPU provider has no bfloat16
    assert [row["what"] for row in parity["not_run"]] == ["TensorRT engines"]


def test_seed_decides_the_weights_and_the_bytes(tmp_path: Path) -> None:
    def export(name: str, seed: int) -> tuple[bytes, bytes]:
        options = ("--components", "embedding", "--onnx-only", "--seed", seed)
        outcome = va_export(*TINY, "-o", tmp_path / name, *options)
        assert outcome.code == 0, outcome.stderr
        folder = tmp_path / name / "onnx"
        return (folder / "embedding.onnx").read_bytes(), (folder / "embedding.onnx.data").read_bytes()

    first, again, other = export("first", 3), export("again", 3), export("other", 4)
    assert first == again
    assert first[0] == other[0] and first[1] != other[1]


def test_failed_parity_is_marked_and_leaves_the_earlier_bundle(tmp_path: Path, tiny_bundle: Path) -> None:
    import shutil

    output = Path(shutil.copytree(tiny_bundle, tmp_path / "b"))
    before = {name: (output / name).read_bytes() for name in files_of(output)}
    options = ("--onnx-only", "--latency-iterations", 0, "--new-tokens", 1, "--atol", 0, "--rtol", 0)
    outcome = va_export(*TINY, "-o", output, "--overwrite", "--num-decoder-layers", 1, *options)
    assert outcome.code == 1 and "PARITY FAILED" in outcome.stderr and "Traceback" not in outcome.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"b", "b.failed"}
    assert {name: (output / name).read_bytes() for name in files_of(output)} == before
    manifest = json.loads((tmp_path / "b.failed" / "manifest.json").read_text())
    assert manifest["parity"]["passed"] is False
    assert json.loads((tmp_path / "b.failed" / "parity.json").read_text())["passed"] is False
    assert outcome.stdout.strip() == str(tmp_path / "b.failed")


SHAPES = {
    "vision": ["pixel_values:[2,3,112,112]"],
    "embedding": ["input_ids:[1,9]", "is_visual:[1,9]", "visual_tokens:[16,128]"],
    "decoder": [
        "inputs_embeds:[1,5,128]",
        "position_ids:[1,1,5]",
        "key_log_gain:[1,32]",
        "value_gain:[1,32]",
        "past_length:[1]",
        *(f"past_key_values.{layer}.{part}:[1,2,32,32]" for layer in (0, 1) for part in ("key", "value")),
    ],
}
RANGES = {"embedding": ["input_ids:[0,262]", "is_visual:[0,0]"], "decoder": ["past_length:[0,0]"]}


def polygraphy(*arguments: object) -> str:
    environment = {**os.environ, "POLYGRAPHY_AUTOINSTALL_DEPS": "0"}
    command = [sys.executable, "-c", "from polygraphy.tools import main; main()", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["vision", "embedding", "decoder"])
def test_polygraphy_reads_and_runs_the_onnx_files(tiny_bundle: Path, name: str, tmp_path: Path) -> None:
    path = tiny_bundle / "onnx" / f"{name}.onnx"
    shown = polygraphy("inspect", "model", path)
    assert f"Name: {name}" in shown and all(shape.split(":")[0] in shown for shape in SHAPES[name])
    inputs = ["--onnxrt", "--input-shapes", *SHAPES[name]]
    inputs += ["--val-range", *RANGES[name]] if name in RANGES else []
    saved = tmp_path / "outputs.json"
    assert "PASSED" in polygraphy("run", path, *inputs, "--save-outputs", saved)
    if name == "decoder":  # both forms, on the same made-up inputs
        native = tiny_bundle / "onnx" / "decoder_native.onnx"
        tolerance = ["--atol", "logits:2e-2", "1e-2", "--rtol", "1e-2"]
        assert "PASSED" in polygraphy("run", native, *inputs, "--load-outputs", saved, *tolerance)
