"""va-export and what it cannot do: one message, exit code 2, nothing left behind, and before anything is traced."""

from __future__ import annotations

import errno
import json
import os
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
from command_line import TINY, Outcome, va_export
from safetensors.numpy import load_file, save_file

Refused = Callable[..., Outcome]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Runs va-export, which must refuse; returns how it ended.

    Checks that nothing is left at the output, beside it or among the temporary files, and that no graph was traced
    unless `traced` says that it cannot be known before.
    """
    temporary, place = tmp_path / "temporary", tmp_path / "place"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def run(*arguments: object, traced: bool = False) -> Outcome:
        outcome = va_export("-o", place / "bundle", *arguments)
        assert ("export vision" in outcome.stderr) == traced, outcome.stderr
        assert not place.exists() or not list(place.iterdir())
        left = [path.name for path in temporary.iterdir()]
        assert [name for name in left if not name.startswith("torchinductor_")] == []  # PyTorch's own cache
        return outcome

    return run


@pytest.mark.parametrize(("arguments", "where", "named"), [
    (["--model", "internvl2-tny"], "--model", ["internvl2-tny"]),
    (["--model", "./no/such/checkpoint"], "./no/such/checkpoint", []),
    ([*TINY, "--precision", "fp8"], "--precision", ["fp8"]),
    ([*TINY, "--fp16", "--fp32"], "--precision", []),
    ([*TINY, "--fp32", "--precision", "fp16"], "--precision", []),
    ([*TINY, "--attention", "flash"], "--attention", ["flash"]),
    ([*TINY, "--components", "vision,audio"], "--components", ["audio"]),
    ([*TINY, "--components", ","], "--components", []),
    ([*TINY, "--tensorrt", "trt"], "--tensorrt", ["trt"]),
    ([*TINY, "--log-level", "loud"], "--log-level", ["loud"]),
    (["--model", "~nouser/x"], "--model", ["~nouser"]),
    ([*TINY, "--engine-cache", "~nouser"], "--engine-cache", ["~nouser"]),
    ([*TINY, "--question", "caf\udce9"], "--question", ["UTF-8"]),
    ([*TINY, "--output", "b\udcff"], "--output", ["UTF-8"]),
    ([*TINY, "--target", "hopper"], "--target", ["hopper"]),
    ([*TINY, "--onnx-only", "--target", "sm89"], "--onnx-only", ["--target"]),
    ([*TINY, "--frames", "0"], "--frames", [0]),
    ([*TINY, "--frames", "-3"], "recipe internvl2-tiny", ["frames", -3]),
    ([*TINY, "--frames", "17"], "--frames", [17, 16]),
    ([*TINY, "--max-frames", "4"], "--frames", [8, 4]),
    ([*TINY, "--new-tokens", "0"], "--new-tokens", [0]),
    ([*TINY, "--latency-iterations", "-1"], "--latency-iterations", [-1]),
    ([*TINY, "--num-decoder-layers", "0"], "--num-decoder-layers", [0]),
    ([*TINY, "--num-decoder-layers", "3"], "num_decoder_layers", [3, 2]),
    ([*TINY, "--seed", "-1"], "recipe internvl2-tiny", ["seed", -1]),
    ([*TINY, "--max-batch-size", "0"], "limits", ["max_batch_size", 0]),
    ([*TINY, "--max-kv-cache-capacity", "512"], "limits", ["max_input_len", "max_kv_cache_capacity", 512]),
    ([*TINY, "--alpha-k", "-2"], "gain settings", ["alpha_k", -2.0]),
    ([*TINY, "--alpha-v", "nan"], "gain settings", ["alpha_v", "nan"]),
    ([*TINY, "--subspaces", "0"], "--subspaces", ["n_subspaces", 0]),
    ([*TINY, "--subspaces", "many"], "--subspaces", ["n_subspaces", "many"]),
    ([*TINY, "--pca-rank", "-1"], "score settings", ["pca_rank", -1]),
    ([*TINY, "--atol", "-1"], "--atol", [-1.0]),
    ([*TINY, "--rtol", "nan"], "--rtol", ["nan"]),
    ([*TINY, "--onnx-only", "--max-input-len", "100"], "prompt", ["max_input_len", 100]),
    ([*TINY, "--onnx-only", "--frames", "1", "--subspaces", "17"], "--subspaces", [16, 17]),
    ([*TINY, "--onnx-only", "--pca-rank", "129"], "--pca-rank", [128, 129]),
    ([*TINY, "--onnx-only", "--video", "no-such-clip.mp4"], "no-such-clip.mp4", []),
    ([*TINY, "--onnx-only", "--question", "<IMG_CONTEXT>?"], "prompt", ["<IMG_CONTEXT>"]),
])  # fmt: skip
def test_refuses_options(refused: Refused, arguments: list[str], where: str, named: list[object]) -> None:
    refused(*arguments).refuses(where, *named)


def test_refuses_a_seed_for_a_checkpoint(refused: Refused, golden_checkpoint: Path) -> None:
    refused("--model", golden_checkpoint, "--seed", 1).refuses("--seed", golden_checkpoint.name)


def test_refuses_an_image_token_outside_the_vocabulary(tmp_path: Path) -> None:
    outcome = va_export(*TINY, "-o", tmp_path / "b", "--image-token-id", 263)
    outcome.refuses("image_token_id", 263)
    assert not list(tmp_path.iterdir())


def test_an_unknown_option_is_a_usage_error(tmp_path: Path) -> None:
    outcome = va_export("--no-such-option", "-o", tmp_path / "b")
    assert outcome.code == 2 and "--no-such-option" in outcome.stderr and not list(tmp_path.iterdir())


@pytest.mark.usefixtures("needs_engines")
@pytest.mark.parametrize("target", ["sm99", "sm90", "sm80,sm90"])
def test_refuses_a_target_that_rtx_does_not_know(refused: Refused, target: str) -> None:
    refused(*TINY, "--target", target).refuses("--target", target.split(",")[-1])


@pytest.mark.usefixtures("needs_engines")
def test_refuses_limits_that_no_engine_can_have(refused: Refused) -> None:
    refused(*TINY, "--max-frames", 100, "--max-input-len", 1024).refuses("limits", "max_frames", 100, 1024)


def test_refuses_a_tensorrt_that_is_not_installed(refused: Refused) -> None:
    from va_export.tensorrt.api import available_flavors

    if "tensorrt" in available_flavors():
        pytest.skip("full TensorRT is installed")
    refused(*TINY, "--tensorrt", "tensorrt").refuses("tensorrt")


def test_refuses_a_missing_plugin_library_only_where_engines_need_it(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, can_build_engines: bool
) -> None:
    monkeypatch.setenv("VA_EXPORT_PLUGIN_LIBRARY", str(tmp_path / "none.so"))
    if can_build_engines:
        refused(*TINY).refuses(tmp_path / "none.so")
    outcome = va_export(*TINY, "-o", tmp_path / "place" / "b", "--onnx-only", "--dry-run")
    assert outcome.code == 0, outcome.stderr


# Checkpoints


def test_refuses_a_truncated_checkpoint(refused: Refused, checkpoint_copy: Path) -> None:
    path = checkpoint_copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused("--model", checkpoint_copy).refuses(path, path.stat().st_size, path.stat().st_size + 100)


def change_weights(checkpoint: Path, change: Callable[[dict[str, np.ndarray[Any, Any]]], None]) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    change(weights)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})


NORM = "language_model.model.norm.weight"
PROJECTOR = "mlp1.1.weight"
QKV = "language_model.model.layers.0.attention.wqkv.weight"


def test_refuses_a_missing_weight(refused: Refused, checkpoint_copy: Path) -> None:
    change_weights(checkpoint_copy, lambda weights: weights.pop(NORM))
    refused("--model", checkpoint_copy).refuses(checkpoint_copy, 1, NORM)


def test_refuses_a_weight_without_a_place(refused: Refused, checkpoint_copy: Path) -> None:
    change_weights(checkpoint_copy, lambda weights: weights.update(extra=np.zeros(3, np.float32)))
    refused("--model", checkpoint_copy).refuses(checkpoint_copy, 1, "extra")


def test_refuses_quantised_weights(refused: Refused, checkpoint_copy: Path) -> None:
    change_weights(checkpoint_copy, lambda weights: weights.update({NORM: weights[NORM].astype(np.int8)}))
    refused("--model", checkpoint_copy).refuses(checkpoint_copy, NORM, "int8")


@pytest.mark.parametrize(("value", "name"), [(np.nan, PROJECTOR), (np.inf, PROJECTOR)])
def test_refuses_weights_that_are_not_finite(refused: Refused, checkpoint_copy: Path, value: float, name: str) -> None:
    change_weights(checkpoint_copy, lambda weights: weights[name].__setitem__((0, 0), value))
    outcome = refused("--model", checkpoint_copy, "--onnx-only", "--components", "vision", traced=True)
    outcome.refuses(checkpoint_copy, name, 1)
    assert "--clip-overflow" not in outcome.message


def test_refuses_weights_beyond_float16(refused: Refused, checkpoint_copy: Path) -> None:
    change_weights(checkpoint_copy, lambda weights: weights[PROJECTOR].__setitem__((0, 0), 1e5))
    outcome = refused("--model", checkpoint_copy, "--onnx-only", "--components", "vision", traced=True)
    outcome.refuses(checkpoint_copy, PROJECTOR, 1, 100000)
    assert "--precision bf16" in outcome.message and "--clip-overflow" in outcome.message


def test_all_weights_beyond_float16_are_named_at_once(refused: Refused, checkpoint_copy: Path) -> None:
    """Those of components that were not traced yet too, and packed ones by each parameter that has some."""

    def change(weights: dict[str, np.ndarray[Any, Any]]) -> None:
        for name, value in ((PROJECTOR, 7e4), (NORM, -3e38), (QKV, 1e5)):
            weights[name][-1:] = value

    change_weights(checkpoint_copy, change)
    outcome = refused("--model", checkpoint_copy, "--onnx-only", traced=True)
    outcome.refuses(checkpoint_copy, 3, "fp16", PROJECTOR, NORM, "v_proj.weight", "3e+38")


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
    refused("--model", checkpoint_copy).refuses(checkpoint_copy, "config.json", "feed_forward")


def test_refuses_an_unsupported_architecture(refused: Refused, checkpoint_copy: Path) -> None:
    change_config(checkpoint_copy, lambda config: config.update(architectures=["LlavaForConditionalGeneration"]))
    refused("--model", checkpoint_copy).refuses("config.json", "LlavaForConditionalGeneration")


@pytest.mark.parametrize("text", ["{", "[]", "\udc80"])
def test_refuses_a_corrupt_config(refused: Refused, checkpoint_copy: Path, text: str) -> None:
    (checkpoint_copy / "config.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    refused("--model", checkpoint_copy).refuses(checkpoint_copy / "config.json")


def test_refuses_a_directory_without_checkpoint(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused("--model", tmp_path / "empty").refuses(tmp_path / "empty" / "config.json")


# Video


def test_refuses_a_file_that_is_no_video(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"not a video" * 100)
    refused(*TINY, "--onnx-only", "--video", tmp_path / "clip.mp4").refuses(tmp_path / "clip.mp4")


def test_refuses_a_video_of_too_few_frames(refused: Refused, tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "short.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 64
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    refused(*TINY, "--onnx-only", "--video", tmp_path / "short.mp4").refuses(tmp_path / "short.mp4", 3, 8)


# The output


def test_refuses_an_output_that_exists(tiny_bundle: Path) -> None:
    before = sorted(tiny_bundle.rglob("*"))
    outcome = va_export(*TINY, "-o", tiny_bundle)
    outcome.refuses(tiny_bundle)
    assert "--overwrite" in outcome.message
    assert sorted(tiny_bundle.rglob("*")) == before and len(list(tiny_bundle.parent.iterdir())) == 1


def test_refuses_to_overwrite_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("years")
    (tmp_path / "file").write_text("text")
    for name in ("work", "file"):
        va_export(*TINY, "-o", tmp_path / name, "--overwrite").refuses(tmp_path / name)
    assert (tmp_path / "work" / "thesis.tex").read_text() == "years"
    assert (tmp_path / "file").read_text() == "text"


def test_refuses_an_output_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    va_export(*TINY, "-o", tmp_path / "file" / "bundle").refuses(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "text"


def test_refuses_an_output_that_cannot_be_written() -> None:
    outcome = va_export(*TINY, "-o", "/proc/va-export/bundle")  # nobody, root included, makes folders in /proc
    outcome.refuses("/proc/va-export")


def test_refuses_a_disk_that_is_too_small(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=1 << 40, used=0, free=1 << 20))
    refused(*TINY).refuses(Path("place/bundle"), "1 MB")


def test_refuses_a_memory_that_is_too_small(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 20, total=1 << 30))
    refused(*TINY).refuses("memory", "1 MB")


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
    outcome.refuses(small_disk / "bundle")
    assert "export vision" not in outcome.stderr and not list(small_disk.iterdir())


def test_a_disk_that_fills_up_half_way(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("va_export.pipeline.check_plan", lambda *_: None)  # the estimate was right when it was made
    outcome = va_export(*TINY, "-o", small_disk / "bundle", "--components", "vision", "--onnx-only")
    outcome.refuses(Path("onnx/vision.onnx.data"), os.strerror(errno.ENOSPC))
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
        outcome.refuses(tmp_path / "file")
        assert (tmp_path / "file").is_file()
