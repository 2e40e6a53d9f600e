"""The end-to-end script runs whole without a GPU at toy size, and what it writes has the form of evidence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from va_export.evidence.document import read_evidence

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_end_to_end.py"
FORMS = {"sdpa_plain", "official_eager_bias", "sdpa_dense_bias", "flex_attention_bias"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


def test_a_trial_on_the_cpu(tmp_path: Path) -> None:
    done = run(
        *("--device", "cpu", "--tiny", "--frames", "2", "--new-tokens", "3"), "--repeats", "1", f"--output={tmp_path}"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document = read_evidence(tmp_path / "cpu-end-to-end.json")
    checks = {row["name"]: row for row in document["checks"]}
    assert all(row["passed"] for row in checks.values())
    assert {f"logits of {name} at 2 frames" for name in FORMS - {"sdpa_plain"}} < set(checks)
    assert "anchors change the logits of sdpa_plain at 2 frames" in checks
    rows = {row["op"].removeprefix("video_question_"): row for row in document["timings"]}
    assert set(rows) == {"vision", "score", "prefill", "decode_per_token", "total"}
    assert set(rows["total"]["peers_us"]) == FORMS and "extrapolated" in rows["total"]["notes"]["official_eager_bias"]
    assert set(rows["score"]["peers_us"]) == FORMS - {"sdpa_plain"}
    assert all(row["ours_us"] > 0 for row in rows.values())


def test_a_trial_is_no_evidence() -> None:
    evidence = SCRIPT.parents[1] / "engines" / "evidence"
    before = sorted(evidence.glob("*")) if evidence.exists() else []
    done = run("--device", "cpu", "--tiny", "--frames", "2", "--new-tokens", "2", "--repeats", "1")
    assert done.returncode == 1 and "figures of a CPU are no evidence" in done.stderr
    assert (sorted(evidence.glob("*")) if evidence.exists() else []) == before


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="there is a GPU, so the script would start")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = run(f"--output={tmp_path}")
    assert done.returncode == 1 and done.stderr.startswith("error: PyTorch sees no NVIDIA GPU")
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())
