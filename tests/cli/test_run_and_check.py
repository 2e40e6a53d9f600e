"""va-run and va-check on a bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import TINY, va_check, va_export, va_run


def snapshot(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_run_answers_about_a_real_clip(tiny_bundle: Path, clip: Path) -> None:
    question = ("--video", clip, "--prompt", "What moves?", "--max-new-tokens", 12)
    anchored = va_run(tiny_bundle, *question, "--timings")
    plain = va_run(tiny_bundle, *question, "--no-anchors", "--timings")
    again = va_run(tiny_bundle, *question)
    strong = va_run(tiny_bundle, *question, "--alpha-k", 50, "--alpha-v", 10)
    graph = va_run(tiny_bundle, *question, "--score", "graph")
    for outcome in (anchored, plain, again, strong, graph):
        assert outcome.code == 0 and outcome.stdout.strip(), outcome.stderr
    assert anchored.stdout == again.stdout
    assert len({anchored.stdout, plain.stdout, strong.stdout}) == 3
    assert set(json.loads(anchored.stderr)) == {"vision", "score", "prefill", "decode", "total", "video"}
    assert set(json.loads(plain.stderr)) == {"vision", "prefill", "decode", "total", "video"}
    assert again.stderr == ""


@pytest.mark.parametrize(("arguments", "words"), [
    (["--frames", "0"], "--frames must be at least 1"),
    (["--frames", "17"], "17 frames are more than this bundle's max_frames (16)"),
    (["--frames", "300"], "300 frames are more than this bundle's max_frames (16)"),
    (["--max-new-tokens", "0"], "max_new_tokens must be at least 1"),
    (["--max-new-tokens", "5000"], "do not fit the KV cache of 2048"),
    (["--alpha-k", "-3"], "alpha_k"),
    (["--no-anchors", "--alpha-k", "3"], "contradicts"),
    (["--backend", "tpu"], "backend cannot be 'tpu'"),
    (["--score", "gpu"], "score cannot be 'gpu'"),
    (["--score", "graph", "--backend", "torch"], "no graph of the score for torch"),
    (["--log-level", "loud"], "unknown log level"),
])  # fmt: skip
def test_run_refuses(tiny_bundle: Path, clip: Path, arguments: list[str], words: str) -> None:
    outcome = va_run(tiny_bundle, "--video", clip, "--prompt", "What?", *arguments)
    assert outcome.code == 2 and words in outcome.message and outcome.stdout == ""


def test_run_refuses_what_is_no_video_and_no_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_text("no video")
    for bundle, video, words in (
        (tiny_bundle, tmp_path / "clip.mp4", "cannot be read"),
        (tiny_bundle, tmp_path / "none.mp4", "no such video file"),
        (tmp_path / "none", tmp_path / "clip.mp4", "no such bundle directory"),
        (tmp_path, tmp_path / "clip.mp4", "holds no manifest.json"),
    ):
        outcome = va_run(bundle, "--video", video, "--prompt", "What?")
        assert outcome.code == 2 and words in outcome.message and "where:" in outcome.message


def test_run_without_tokenizer(golden_bundle: Callable[[str], Path], clip: Path) -> None:
    outcome = va_run(golden_bundle("fp32"), "--video", clip, "--prompt", "What?")
    assert outcome.code == 2 and "no tokenizer" in outcome.message and "input_ids" in outcome.message


def has_gpu() -> bool:
    from va_export.machine import gpu_name

    return gpu_name() is not None


@pytest.mark.parametrize("command", [va_check, va_run])
@pytest.mark.skipif(has_gpu(), reason="this machine has an NVIDIA GPU")
def test_tensorrt_without_a_gpu_is_one_message(tiny_bundle: Path, clip: Path, command: Callable[..., Any]) -> None:
    question = ("--video", clip, "--prompt", "What?") if command is va_run else ()
    outcome = command(tiny_bundle, "--backend", "tensorrt-rtx", *question)
    assert outcome.code == 2 and "GPU" in outcome.message and "fix:" in outcome.message, outcome.stderr


def test_check_passes_and_changes_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    before = snapshot(tiny_bundle)
    outcome = va_check(tiny_bundle, "--latency-iterations", 2, "-o", tmp_path / "results", "--json")
    assert outcome.code == 0, outcome.stderr
    told = json.loads(outcome.stdout)
    assert {"bundle": str(tiny_bundle), "backend": "onnxruntime", "passed": True}.items() <= told.items()
    assert told["ran"] == ["ONNX Runtime, CPU"] and set(told["median_ms"]) == {"anchored", "plain"}
    assert snapshot(tiny_bundle) == before
    parity = json.loads((tmp_path / "results" / "parity.json").read_text())
    assert parity["passed"] and len(parity["runs"]) == 1
    latency = json.loads((tmp_path / "results" / "latency.json").read_text())
    assert {run["anchors"] for run in latency["runs"]} == {True, False}


def test_check_in_pytorch(tiny_bundle: Path) -> None:
    outcome = va_check(tiny_bundle, "--backend", "torch", "--latency-iterations", 0, "--json")
    assert outcome.code == 0 and json.loads(outcome.stdout)["passed"] is True, outcome.stderr


def test_check_fails_beyond_the_tolerance(tiny_bundle: Path) -> None:
    outcome = va_check(tiny_bundle, "--latency-iterations", 0, "--atol", 0, "--rtol", 0, "--json")
    assert outcome.code == 1 and json.loads(outcome.stdout)["passed"] is False
    assert "FAILED" in outcome.stderr and "Traceback" not in outcome.stderr


@pytest.mark.parametrize(("arguments", "words"), [
    (["--atol", "-1"], "tolerance"),
    (["--rtol", "inf"], "tolerance"),
    (["--latency-iterations", "-1"], "--latency-iterations"),
    (["--backend", "tpu"], "backend cannot be"),
])  # fmt: skip
def test_check_refuses(tiny_bundle: Path, arguments: list[str], words: str) -> None:
    outcome = va_check(tiny_bundle, *arguments)
    assert outcome.code == 2 and words in outcome.message and outcome.stdout == ""


def test_check_does_not_write_into_the_bundle(copied_bundle: Path) -> None:
    before = snapshot(copied_bundle)
    for output in (copied_bundle, copied_bundle / "results"):
        outcome = va_check(copied_bundle, "-o", output)
        assert outcome.code == 2 and "may not be written into the bundle" in outcome.message
    assert snapshot(copied_bundle) == before


def test_check_finds_a_changed_byte(copied_bundle: Path) -> None:
    path = copied_bundle / "onnx" / "vision.onnx.data"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    outcome = va_check(copied_bundle, "--latency-iterations", 0)
    assert outcome.code == 2 and "onnx/vision.onnx.data is not the file that was exported" in outcome.message


def test_check_needs_a_reference(tmp_path: Path) -> None:
    exported = va_export(*TINY, "-o", tmp_path / "b", "--components", "embedding", "--onnx-only")
    assert exported.code == 0
    outcome = va_check(tmp_path / "b")
    assert outcome.code == 2 and "no reference" in outcome.message and "--components" in outcome.message


def test_a_bundle_is_complete_wherever_it_is_copied(copied_bundle: Path, tmp_path: Path) -> None:
    moved = Path(shutil.move(copied_bundle, tmp_path / "some where else"))
    assert va_check(moved, "--latency-iterations", 0).code == 0
