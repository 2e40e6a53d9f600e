"""The engines script where there is no GPU: a trial on ONNX Runtime, and its reading of wheels and of test results."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from refusals import refused
from script_files import load_script

from va_export.evidence.bundle_checks import stage_rows, use_wheels
from va_export.evidence.device import describe_cpu
from va_export.evidence.document import begin_evidence, check_evidence, read_evidence
from va_export.proof.documents import LatencyRun, PeakMemory
from va_export.proof.latency import summarize

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_engines.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


def test_a_trial_on_the_cpu(tiny_bundle: Path, tmp_path: Path) -> None:
    done = run("--device", "cpu", f"--bundle={tiny_bundle}", f"--output={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    document = read_evidence(tmp_path / "cpu-engines.json")
    names = {row["name"] for row in document["checks"]}
    assert any("prefill_logits anchors=True" in name for name in names)
    assert all(row["passed"] for row in document["checks"])
    assert {row["op"] for row in document["timings"]} >= {"bundle_vision", "bundle_prefill", "bundle_decode_per_token"}


def test_a_bundle_that_is_none_is_told_in_the_file(tmp_path: Path) -> None:
    done = run("--device", "cpu", f"--bundle={tmp_path / 'nothing'}", f"--output={tmp_path}")
    assert done.returncode == 1
    (row,) = read_evidence(tmp_path / "cpu-engines.json")["checks"]
    assert not row["passed"] and "nothing" in row["message"]


def test_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has an NVIDIA driver")
    done = run("--output", str(tmp_path))
    assert done.returncode == 1
    assert "no NVIDIA GPU answers here" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_latency_becomes_rows_of_evidence() -> None:
    times, gpu_times = summarize([3.0, 1.0, 2.0]), summarize([0.5])
    latency = LatencyRun(
        *("tensorrt-rtx", "cuda", "plugin", True, 0, 3, 4),
        stages={"vision": times},
        peak_memory_bytes=PeakMemory(1, 2),
        gpu_stages={"vision": gpu_times},
    )
    evidence = begin_evidence(describe_cpu(), "0" * 40, {"matmul_bf16_tflops": None, "copy_tb_per_s": None})
    evidence["timings"] += stage_rows(latency, "float16")
    check_evidence(evidence)
    host, gpu = evidence["timings"]
    assert (host["op"], host["ours_us"], host["ours_range_us"]) == ("bundle_vision", 2000.0, [1000.0, 3000.0])
    assert (gpu["variant"], gpu["ours_us"], gpu["ours_peak_bytes"]) == ("gpu time", 500.0, 2)


def test_skipped_and_failed_tests_are_not_passed(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="a" name="good"/>'
        '<testcase classname="a" name="bad"><failure message="0.3 > 0.1&#10;more"/></testcase>'
        '<testcase classname="a" name="left"><skipped message="no GPU"/></testcase></testsuite></testsuites>'
    )
    rows = load_script("gpu_engines").rows_from_junit(report)
    assert [(row["name"], row["passed"], row.get("message")) for row in rows] == [
        ("a::good", True, None),
        ("a::bad", False, "0.3 > 0.1"),
        ("a::left", False, "no GPU"),
    ]


def test_wheels_are_joined_and_importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    whole = tmp_path / "whole.whl"
    with zipfile.ZipFile(whole, "w") as wheel:
        wheel.writestr("a_module_of_a_wheel.py", "VALUE = 7\n")
    data = whole.read_bytes()
    for piece in range(12):  # 10 comes after 9, not after 1
        (source / f"some-1.0.whl.{piece}").write_bytes(data[piece * len(data) // 12 : (piece + 1) * len(data) // 12])
    assert use_wheels(source, target) == ["some-1.0.whl"]
    assert importlib.import_module("a_module_of_a_wheel").VALUE == 7
    (source / "some-1.0.whl.11").unlink()
    with refused(source, "some-1.0.whl"):
        use_wheels(source, target)
    with refused(target / "nothing"):
        use_wheels(target / "nothing", target)
