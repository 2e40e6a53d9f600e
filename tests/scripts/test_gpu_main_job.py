"""The GPU script where there is no GPU: it says so, and its reading of test results is right."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from va_export.evidence.device import describe_cpu
from va_export.evidence.document import begin_evidence, check_evidence
from va_export.report.latency import summarize

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_main_job.py"


def load_script():
    spec = importlib.util.spec_from_file_location("gpu_main_job", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_latency_becomes_rows_of_evidence():
    times = summarize([3.0, 1.0, 2.0])
    run = {
        "backend": "tensorrt-rtx",
        "attention": "plugin",
        "anchors": True,
        "new_tokens": 4,
        "stages": {"vision": times},
    }
    evidence = begin_evidence(describe_cpu(), "0" * 40, {"matmul_bf16_tflops": None, "copy_tb_per_s": None})
    evidence["timings"] += load_script().stage_rows(run)
    check_evidence(evidence)
    row = evidence["timings"][0]
    assert (row["op"], row["ours_us"], row["ours_range_us"]) == ("bundle_vision", 2000.0, [1000.0, 3000.0])


def test_says_that_there_is_no_gpu(tmp_path):
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has an NVIDIA driver")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--output", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "no NVIDIA GPU answers here" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_skipped_and_failed_tests_are_not_passed(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="a" name="good"/>'
        '<testcase classname="a" name="bad"><failure message="0.3 > 0.1&#10;more"/></testcase>'
        '<testcase classname="a" name="left"><skipped message="no GPU"/></testcase></testsuite></testsuites>'
    )
    rows = load_script().rows_from_junit(report)
    assert [(row["name"], row["passed"], row.get("message")) for row in rows] == [
        ("a::good", True, None),
        ("a::bad", False, "0.3 > 0.1"),
        ("a::left", False, "no GPU"),
    ]
