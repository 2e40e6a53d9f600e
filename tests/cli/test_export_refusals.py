"""va-export and what it cannot do: one message, exit code 2, nothing left behind, and before anything is traced."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import TINY, va_export
from safetensors.numpy import load_file, save_file

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Runs va-export, which must refuse; returns the message.

    Checks that nothing is left at the output, beside it or among the temporary files, and that no graph was traced
    unless `traced` says that it cannot be known before.
    """
    temporary, place = tmp_path / "temporary", tmp_path / "place"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def run(*arguments: object, traced: bool = False) -> str:
        outcome = va_export("-o", place / "bundle", *arguments)
        assert outcome.code == 2, outcome.stderr
        assert outcome.stdout == ""
        assert "where:" in outcome.message and "fix:" in outcome.message, outcome.message
        assert ("export vision" in outcome.stderr) == traced, outcome.stderr
        assert not place.exists() or not list(place.iterdir())
        left = [path.name for path in temporary.iterdir()]
        assert [name for name in left if not name.startswith("torchinductor_")] == []  # PyTorch's own cache
        return outcome.message

    return run


@pytest.mark.parametrize(("arguments", "words"), [
    (["--model", "internvl2-tny"], ["unknown model 'internvl2-tny'", "internvl2-tiny"]),
    (["--model", "./no/such/checkpoint"], ["no checkpoint directory", "no/such/checkpoint"]),
    ([*TINY, "--precision", "fp8"], ["'fp8'", "fp32, fp16, bf16"]),
    ([*TINY, "--fp16", "--fp32"], ["several precisions"]),
    ([*TINY, "--fp32", "--precision", "fp16"], ["several precisions"]),
    ([*TINY, "--attention", "flash"], ["'flash'", "plugin, native"]),
    ([*TINY, "--components", "vision,audio"], ["'audio'", "vision, embedding, decoder"]),
    ([*TINY, "--components", ","], ["no component"]),
    ([*TINY, "--tensorrt", "trt"], ["'trt'", "tensorrt-rtx"]),
    ([*TINY, "--log-level", "loud"], ["'loud'", "debug, info"]),
    (["--model", "~nouser/x"], ["no home directory for ~nouser", "--model"]),
    ([*TINY, "--engine-cache", "~nouser"], ["no home directory for ~nouser", "--engine-cache"]),
    ([*TINY, "--question", "caf\udce9"], ["--question is not UTF-8"]),
    ([*TINY, "--output", "b\udcff"], ["--output is not UTF-8"]),
    ([*TINY, "--target", "hopper"], ["hopper is no target", "sm89"]),
    ([*TINY, "--onnx-only", "--target", "sm89"], ["--onnx-only", "--target"]),
    ([*TINY, "--frames", "0"], ["--frames must be at least 1"]),
    ([*TINY, "--frames", "-3"], ["-3"]),
    ([*TINY, "--frames", "17"], ["17 frames", "max_frames (16)", "--max-frames"]),
    ([*TINY, "--max-frames", "4"], ["8 frames", "max_frames (4)"]),
    ([*TINY, "--new-tokens", "0"], ["--new-tokens must be at least 1"]),
    ([*TINY, "--latency-iterations", "-1"], ["--latency-iterations must be at least 0"]),
    ([*TINY, "--num-decoder-layers", "0"], ["at least one decoder layer"]),
    ([*TINY, "--num-decoder-layers", "3"], ["3 decoder layers", "checkpoint has 2"]),
    ([*TINY, "--seed", "-1"], ["seed", "-1"]),
    ([*TINY, "--max-batch-size", "0"], ["max_batch_size must be at least 1"]),
    ([*TINY, "--max-kv-cache-capacity", "512"], ["max_input_len (1024)", "max_kv_cache_capacity (512)"]),
    ([*TINY, "--alpha-k", "-2"], ["alpha_k", "-2"]),
    ([*TINY, "--alpha-v", "nan"], ["alpha_v", "nan"]),
    ([*TINY, "--subspaces", "0"], ["n_subspaces must be above 0"]),
    ([*TINY, "--subspaces", "many"], ["n_subspaces must be above 0, or auto", "many"]),
    ([*TINY, "--pca-rank", "-1"], ["pca_rank", "-1"]),
    ([*TINY, "--atol", "-1"], ["tolerance", "-1"]),
    ([*TINY, "--rtol", "nan"], ["tolerance", "nan"]),
    ([*TINY, "--onnx-only", "--max-input-len", "100"], ["max_input_len (100)", "--max-input-len"]),
    ([*TINY, "--onnx-only", "--frames", "1", "--subspaces", "17"], ["16 visual tokens", "17 subspaces"]),
    ([*TINY, "--onnx-only", "--pca-rank", "129"], ["129", "128 visual tokens"]),
    ([*TINY, "--onnx-only", "--video", "no-such-clip.mp4"], ["no such video file", "no-such-clip.mp4"]),
    ([*TINY, "--onnx-only", "--question", "<IMG_CONTEXT>?"], ["<IMG_CONTEXT>"]),
])  # fmt: skip
def test_refuses_options(refused: Refused, arguments: list[str], words: list[str]) -> None:
    message = refused(*arguments)
    assert all(word in message for word in words), message


def test_refuses_a_seed_for_a_checkpoint(refused: Refused, golden_checkpoint: Path) -> None:
    assert "no random weights" in refused("--model", golden_checkpoint, "--seed", 1)


def test_refuses_an_image_token_outside_the_vocabulary(tmp_path: Path) -> None:
    outcome = va_export(*TINY, "-o", tmp_path / "b", "--image-token-id", 263)
    assert outcome.code == 2 and "263 is outside the vocabulary of 263" in outcome.message
    assert not list(tmp_path.iterdir())


def test_an_unknown_option_is_a_usage_error(tmp_path: Path) -> None:
    outcome = va_export("--no-such-option", "-o", tmp_path / "b")
    assert outcome.code == 2 and "--no-such-option" in outcome.stderr and not list(tmp_path.iterdir())


@pytest.mark.usefixtures("needs_engines")
@pytest.mark.parametrize("target", ["sm99", "sm90", "sm80,sm90"])
def test_refuses_a_target_that_rtx_does_not_know(refused: Refused, target: str) -> None:
    message = refused(*TINY, "--target", target)
    assert target.split(",")[-1] in message and "sm89" in message


@pytest.mark.usefixtures("needs_engines")
def test_refuses_limits_that_no_engine_can_have(refused: Refused) -> None:
    assert "max_frames (100)" in refused(*TINY, "--max-frames", 100, "--max-input-len", 1024)


def test_refuses_a_tensorrt_that_is_not_installed(refused: Refused) -> None:
    from va_export.tensorrt.api import available_flavors

    if "tensorrt" in available_flavors():
        pytest.skip("full TensorRT is installed")
    assert "module tensorrt is not installed" in refused(*TINY, "--tensorrt", "tensorrt")


def test_refuses_a_missing_plugin_library_only_where_engines_need_it(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, can_build_engines: bool
) -> None:
    monkeypatch.setenv("VA_EXPORT_PLUGIN_LIBRARY", str(tmp_path / "none.so"))
    if can_build_engines:
        assert "none.so" in refused(*TINY)
    outcome = va_export(*TINY, "-o", tmp_path / "place" / "b", "--onnx-only", "--dry-run")
    assert outcome.code == 0, outcome.stderr


# Checkpoints


def test_refuses_a_truncated_checkpoint(refused: Refused, checkpoint_copy: Path) -> None:
    path = checkpoint_copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    message = refused("--model", checkpoint_copy)
    assert "truncated" in message and "model.safetensors" in message


def change_weights(checkpoint: Path, change: Callable[[dict[str, np.ndarray[Any, Any]]], None]) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    change(weights)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})


NORM = "language_model.model.norm.weight"
PROJECTOR = "mlp1.1.weight"
QKV = "language_model.model.layers.0.attention.wqkv.weight"


def test_refuses_a_missing_weight(refused: Refused, checkpoint_copy: Path) -> None:
    change_weights(checkpoint_copy, lambda weights: weights.pop(NORM))
    assert f"1 tensors are missing from the checkpoint: {NORM}" in refused("--model", checkpoint_copy)


def test_refuses_a_weight_without_a_place(refused: Refused, checkpoint_copy: Path) -> None:
    change_weights(checkpoint_copy, lambda weights: weights.update(extra=np.zeros(3, np.float32)))
    assert "have no place in the model: extra" in refused("--model", checkpoint_copy)


def test_refuses_quantised_weights(refused: Refused, checkpoint_copy: Path) -> None:
    change_weights(checkpoint_copy, lambda weights: weights.update({NORM: weights[NORM].astype(np.int8)}))
    message = refused("--model", checkpoint_copy)
    assert NORM in message and "int8" in message


@pytest.mark.parametrize(("value", "name"), [(np.nan, PROJECTOR), (np.inf, PROJECTOR)])
def test_refuses_weights_that_are_not_finite(refused: Refused, checkpoint_copy: Path, value: float, name: str) -> None:
    change_weights(checkpoint_copy, lambda weights: weights[name].__setitem__((0, 0), value))
    message = refused("--model", checkpoint_copy, "--onnx-only", "--components", "vision", traced=True)
    assert name in message and "1 NaN or infinite" in message and "--clip-overflow" not in message


def test_refuses_weights_beyond_float16(refused: Refused, checkpoint_copy: Path) -> None:
    change_weights(checkpoint_copy, lambda weights: weights[PROJECTOR].__setitem__((0, 0), 1e5))
    message = refused("--model", checkpoint_copy, "--onnx-only", "--components", "vision", traced=True)
    assert "1 values out of range, up to 100000," in message and PROJECTOR in message
    assert "--precision bf16" in message and "--clip-overflow" in message


def test_all_weights_beyond_float16_are_named_at_once(refused: Refused, checkpoint_copy: Path) -> None:
    """Those of components that were not traced yet too, and packed ones by each parameter that has some."""

    def change(weights: dict[str, np.ndarray[Any, Any]]) -> None:
        for name, value in ((PROJECTOR, 7e4), (NORM, -3e38), (QKV, 1e5)):
            weights[name][-1:] = value

    change_weights(checkpoint_copy, change)
    message = refused("--model", checkpoint_copy, "--onnx-only", traced=True)
    assert "3 weights have values that fp16 cannot hold" in message
    for name in (PROJECTOR, NORM, "v_proj.weight"):
        assert name in message
    assert "up to 3e+38" in message


def test_clipping_is_done_when_asked_for_and_recorded(checkpoint_copy: Path, tmp_path: Path) -> None:
    change_weights(checkpoint_copy, lambda weights: weights[NORM].__setitem__(slice(2, 5), -1e5))
    options = ("--onnx-only", "--no-parity", "--components", "decoder", "--num-decoder-layers", 1)
    outcome = va_export("--model", checkpoint_copy, "-o", tmp_path / "b", *options, "--clip-overflow")
    assert outcome.code == 0 and "3 weights up to 100000 were clipped to ±65504" in " ".join(outcome.stderr.split())
    loss = json.loads((tmp_path / "b" / "manifest.json").read_text())["precision_loss"]
    assert loss["clipped"] == 3 and loss["weights"]["model.language_model.norm.weight"]["clipped"] == 3
    model = onnx.load(tmp_path / "b" / "onnx" / "decoder.onnx")
    (norm,) = [tensor for tensor in model.graph.initializer if tensor.name == "model.language_model.norm.weight"]
    assert onnx.numpy_helper.to_array(norm)[2:5].tolist() == [-65504.0] * 3


def change_config(checkpoint: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    change(config)
    (checkpoint / "config.json").write_text(json.dumps(config))


def test_refuses_a_config_that_contradicts_the_weights(refused: Refused, checkpoint_copy: Path) -> None:
    change_config(checkpoint_copy, lambda config: config["llm_config"].update(intermediate_size=100))
    message = refused("--model", checkpoint_copy)
    assert "another shape than config.json says" in message and "feed_forward" in message


def test_refuses_an_unsupported_architecture(refused: Refused, checkpoint_copy: Path) -> None:
    change_config(checkpoint_copy, lambda config: config.update(architectures=["LlavaForConditionalGeneration"]))
    message = refused("--model", checkpoint_copy)
    assert "LlavaForConditionalGeneration" in message and "InternVLChatModel" in message


@pytest.mark.parametrize("text", ["{", "[]", "\udc80"])
def test_refuses_a_corrupt_config(refused: Refused, checkpoint_copy: Path, text: str) -> None:
    (checkpoint_copy / "config.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    assert "config.json" in refused("--model", checkpoint_copy)


def test_refuses_a_directory_without_checkpoint(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused("--model", tmp_path / "empty")


# Video


def test_refuses_a_file_that_is_no_video(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"not a video" * 100)
    assert "cannot be read" in refused(*TINY, "--onnx-only", "--video", tmp_path / "clip.mp4")


def test_refuses_a_video_of_too_few_frames(refused: Refused, tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "short.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 64
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    message = refused(*TINY, "--onnx-only", "--video", tmp_path / "short.mp4")
    assert "has 3 frames, 8 are asked for" in message


# The output


def test_refuses_an_output_that_exists(tiny_bundle: Path) -> None:
    before = sorted(tiny_bundle.rglob("*"))
    outcome = va_export(*TINY, "-o", tiny_bundle)
    assert outcome.code == 2 and "exists already" in outcome.message and "--overwrite" in outcome.message
    assert sorted(tiny_bundle.rglob("*")) == before and len(list(tiny_bundle.parent.iterdir())) == 1


def test_refuses_to_overwrite_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("years")
    (tmp_path / "file").write_text("text")
    for name in ("work", "file"):
        outcome = va_export(*TINY, "-o", tmp_path / name, "--overwrite")
        assert outcome.code == 2 and "not a bundle" in outcome.message
    assert (tmp_path / "work" / "thesis.tex").read_text() == "years"
    assert (tmp_path / "file").read_text() == "text"


def test_refuses_an_output_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    outcome = va_export(*TINY, "-o", tmp_path / "file" / "bundle")
    assert outcome.code == 2 and "a file has its name" in outcome.message
    assert (tmp_path / "file").read_text() == "text"


def test_refuses_an_output_that_cannot_be_written() -> None:
    outcome = va_export(*TINY, "-o", "/proc/va-export/bundle")  # nobody, root included, makes folders in /proc
    assert outcome.code == 2 and "cannot be written" in outcome.message and "/proc/va-export" in outcome.message


def test_refuses_a_disk_that_is_too_small(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=1 << 40, used=0, free=1 << 20))
    message = refused(*TINY)
    assert "1 MB are free" in message and "--output" in message


def test_refuses_a_memory_that_is_too_small(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 20, total=1 << 30))
    message = refused(*TINY)
    assert "of memory" in message and "--components" in message


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_small_disk_is_found_out_first(small_disk: Path) -> None:
    outcome = va_export(*TINY, "-o", small_disk / "bundle")
    assert outcome.code == 2 and "are free on its disk" in outcome.message
    assert "export vision" not in outcome.stderr and not list(small_disk.iterdir())


def test_a_disk_that_fills_up_half_way(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("va_export.pipeline.check_plan", lambda *_: None)  # the estimate was right when it was made
    outcome = va_export(*TINY, "-o", small_disk / "bundle", "--components", "vision", "--onnx-only")
    assert outcome.code == 2 and "No space left on device" in outcome.message and "free some space" in outcome.message
    assert not list(small_disk.iterdir())


def test_a_byte_order_mark_is_read_over(checkpoint_copy: Path, tmp_path: Path) -> None:
    """As editors on Windows put it before a configuration or a recipe."""
    for path in (checkpoint_copy / "config.json",):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (tmp_path / "mine.toml").write_text(f'\ufeffcheckpoint = "{checkpoint_copy}"\n', encoding="utf-8")
    outcome = va_export("--model", tmp_path / "mine.toml", "--onnx-only", "--dry-run")
    assert outcome.code == 0, outcome.stderr


def test_an_output_that_is_no_directory_is_named_as_that(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for options in ((), ("--overwrite",)):
        outcome = va_export(*TINY, "-o", tmp_path / "file", "--dry-run", *options)
        assert outcome.code == 2 and "is not a bundle" in outcome.message and (tmp_path / "file").is_file()
