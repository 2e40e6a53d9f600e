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


def test_run_answers_about_a_real_clip(
    tiny_bundle: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VA_EXPORT_CACHE", str(tmp_path / "cache"))  # other tests fill the common one meanwhile
    question = ("--video", clip, "--prompt", "What moves?", "--max-new-tokens", 12)
    anchored = va_run(tiny_bundle, *question, "--timings")
    plain = va_run(tiny_bundle, *question, "--no-anchors", "--timings")
    again = va_run(tiny_bundle, *question)
    strong = va_run(tiny_bundle, *question, "--alpha-k", 50, "--alpha-v", 10)
    graph = va_run(tiny_bundle, *question, "--score", "graph")
    kept = tmp_path / "cache" / "scores"
    n_kept = len(list(kept.iterdir()))
    assert n_kept == 2  # the host's and the graph's
    elsewhere = va_run(tiny_bundle, *question, "--score-cache", tmp_path / "scores")
    assert elsewhere.stdout == anchored.stdout and len(list((tmp_path / "scores").iterdir())) == 1
    assert va_run(tiny_bundle, *question, "--score-cache", "off").stdout == anchored.stdout
    assert len(list(kept.iterdir())) == n_kept
    for outcome in (anchored, plain, again, strong, graph):
        assert outcome.code == 0 and outcome.stdout.strip(), outcome.stderr
    assert anchored.stdout == again.stdout
    assert len({anchored.stdout, plain.stdout, strong.stdout}) == 3
    assert set(json.loads(anchored.stderr)) == {"vision", "score", "prefill", "decode", "total", "video"}
    assert set(json.loads(plain.stderr)) == {"vision", "prefill", "decode", "total", "video"}
    assert again.stderr == ""


@pytest.mark.parametrize(("arguments", "where", "named"), [
    (["--frames", "0"], "--frames", [0]),
    (["--frames", "17"], "frames", [17, 16]),
    (["--frames", "300"], "frames", [300, 16]),
    (["--max-new-tokens", "0"], "max_new_tokens", [0]),
    (["--max-new-tokens", "5000"], "generate", [5000, 2048]),
    (["--alpha-k", "-3"], "alpha_k", [-3.0]),
    (["--no-anchors", "--alpha-k", "3"], "generate", ["anchors=False"]),
    (["--backend", "tpu"], "backend", ["tpu"]),
    (["--score", "gpu"], "score", ["gpu"]),
    (["--score", "graph", "--backend", "torch"], "bundle", ["torch"]),
    (["--log-level", "loud"], "--log-level", ["loud"]),
])  # fmt: skip
def test_run_refuses(tiny_bundle: Path, clip: Path, arguments: list[str], where: str, named: list[object]) -> None:
    va_run(tiny_bundle, "--video", clip, "--prompt", "What?", *arguments).refuses(where, *named)


def test_run_refuses_what_is_no_video_and_no_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_text("no video")
    for bundle, video, where in (
        (tiny_bundle, tmp_path / "clip.mp4", tmp_path / "clip.mp4"),
        (tiny_bundle, tmp_path / "none.mp4", tmp_path / "none.mp4"),
        (tmp_path / "none", tmp_path / "clip.mp4", tmp_path / "none"),
        (tmp_path, tmp_path / "clip.mp4", tmp_path),
    ):
        va_run(bundle, "--video", video, "--prompt", "What?").refuses(where)


def test_run_without_tokenizer(golden_bundle: Callable[[str], Path], clip: Path) -> None:
    outcome = va_run(golden_bundle("fp32"), "--video", clip, "--prompt", "What?")
    outcome.refuses(golden_bundle("fp32"))
    assert "input_ids" in outcome.message


def has_gpu() -> bool:
    from va_export.machine import gpu_name

    return gpu_name() is not None


@pytest.mark.parametrize("command", [va_check, va_run])
@pytest.mark.skipif(has_gpu(), reason="this machine has an NVIDIA GPU")
def test_tensorrt_without_a_gpu_is_one_message(tiny_bundle: Path, clip: Path, command: Callable[..., Any]) -> None:
    question = ("--video", clip, "--prompt", "What?") if command is va_run else ()
    outcome = command(tiny_bundle, "--backend", "tensorrt-rtx", *question)
    outcome.refuses("TensorRT runtime", "NVIDIA")


def test_check_passes_and_changes_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    before = snapshot(tiny_bundle)
    outcome = va_check(tiny_bundle, "--latency-iterations", 2, "-o", tmp_path / "results", "--json")
    assert outcome.code == 0 and "export with --precision fp32" in outcome.stderr, outcome.stderr
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
    assert "--precision" not in outcome.stderr


def test_check_fails_beyond_the_tolerance(tiny_bundle: Path) -> None:
    outcome = va_check(tiny_bundle, "--latency-iterations", 0, "--atol", 0, "--rtol", 0, "--json")
    assert outcome.code == 1 and json.loads(outcome.stdout)["passed"] is False
    assert "FAILED" in outcome.stderr and "Traceback" not in outcome.stderr


@pytest.mark.parametrize(("arguments", "where", "named"), [
    (["--atol", "-1"], "--atol", [-1.0]),
    (["--rtol", "inf"], "--rtol", ["inf"]),
    (["--latency-iterations", "-1"], "--latency-iterations", [-1]),
    (["--backend", "tpu"], "backend", ["tpu"]),
])  # fmt: skip
def test_check_refuses(tiny_bundle: Path, arguments: list[str], where: str, named: list[object]) -> None:
    va_check(tiny_bundle, *arguments).refuses(where, *named)


def test_check_does_not_write_into_the_bundle(copied_bundle: Path) -> None:
    before = snapshot(copied_bundle)
    for output in (copied_bundle, copied_bundle / "results"):
        va_check(copied_bundle, "-o", output).refuses(output)
    assert snapshot(copied_bundle) == before


def test_check_finds_a_changed_byte(copied_bundle: Path) -> None:
    path = copied_bundle / "onnx" / "vision.onnx.data"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    va_check(copied_bundle, "--latency-iterations", 0).refuses(copied_bundle, "onnx/vision.onnx.data")


def test_check_needs_a_reference(tmp_path: Path) -> None:
    exported = va_export(*TINY, "-o", tmp_path / "b", "--components", "embedding", "--onnx-only")
    assert exported.code == 0
    va_check(tmp_path / "b").refuses(tmp_path / "b" / "reference.npz")


def test_a_bundle_is_complete_wherever_it_is_copied(copied_bundle: Path, tmp_path: Path) -> None:
    moved = Path(shutil.move(copied_bundle, tmp_path / "some where else"))
    assert va_check(moved, "--latency-iterations", 0).code == 0
