"""The GPU script where there is no GPU: it says so, and its reading of test results is right."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_main_job.py"


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
    spec = importlib.util.spec_from_file_location("gpu_main_job", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = module.rows_from_junit(report)
    assert [(row["name"], row["passed"], row["message"]) for row in rows] == [
        ("a::good", True, None),
        ("a::bad", False, "0.3 > 0.1"),
        ("a::left", False, "no GPU"),
    ]
