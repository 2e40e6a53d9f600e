"""scripts/gpu_check.py where there is no GPU: the whole of it at toy size, and what it refuses."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from va_export.evidence.device import COMMIT_VARIABLE
from va_export.evidence.document import read_evidence

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "gpu_check.py"


@pytest.fixture(autouse=True)
def commit(monkeypatch):
    monkeypatch.setenv(COMMIT_VARIABLE, "0" * 40)  # a source archive has no repository to ask


def run(*options):
    return subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False)


def test_the_whole_script_on_the_eager_reference(tmp_path):
    done = run("--device", "cpu", "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    evidence = read_evidence(tmp_path / "cpu-attention.json")
    assert evidence["device"]["name"] == "cpu"
    assert len(evidence["checks"]) >= 20
    assert {row["op"] for row in evidence["timings"]} == {"anchored_attention_prefill", "anchored_attention_decode"}
    peers = evidence["timings"][-2]["peers_us"]
    assert peers["sdpa_flash_plain"] and peers["sdpa_flash_augmented_bias"]
    assert evidence["targets"] == []


def test_a_cpu_writes_no_evidence():
    done = run("--device", "cpu", "--only", "plugin", "--output", str(ROOT / "engines" / "evidence"))
    assert done.returncode == 1
    assert "figures of a CPU are no evidence" in done.stderr and "Traceback" not in done.stderr
    assert not list((ROOT / "engines").glob("evidence/cpu-*"))


def test_says_what_is_missing(tmp_path):
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has an NVIDIA driver")
    done = run("--output", str(tmp_path))
    assert done.returncode == 1
    assert "no NVIDIA GPU answers here" in done.stderr and "Traceback" not in done.stderr
    done = run("--no-build", "--build-only", "--build-folder", str(tmp_path))
    assert "libva_plugins.so has not been built" in done.stderr and done.returncode == 1
    assert not list(tmp_path.iterdir())
