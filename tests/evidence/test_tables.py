"""README's section on performance says what the evidence files hold, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from va_export.evidence.document import begin_evidence, check_evidence
from va_export.evidence.tables import BEGIN, END, NOT_MEASURED, performance_section, read_folder, replace_section

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "scripts" / "readme_tables.py"


def timing(op: str, shape: dict[str, Any], ours: float | None, **peers: float | None) -> dict[str, Any]:
    notes = {name: "out of memory" for name, time in peers.items() if time is None}
    if ours is None:
        notes["ours"] = "no such kernel"
    return {
        "op": op,
        "shape": shape,
        "dtype": "float16",
        "ours_us": ours,
        "ours_range_us": None if ours is None else [ours, ours],
        "peers_us": peers,
        "notes": notes,
    }


def question(frames: int, ours: float, plain: float, official: float | None) -> dict[str, Any]:
    peers = {"sdpa_flash_plain": plain, "sdpa_cudnn_plain": 2 * plain, "official_eager_bias": official}
    return timing("video_question_total", {"frames": frames}, ours, **peers)


@pytest.fixture
def document() -> dict[str, Any]:
    made = begin_evidence(
        {"name": "Test GPU", "driver": "1", "cuda": "13", "torch": "2"},
        "0" * 40,
        {"matmul_bf16_tflops": 1.0, "copy_tb_per_s": 1.0},
    )
    attention = {
        **{"batch": 1, "query_heads": 32, "kv_heads": 8, "q_len": 2048, "kv_len": 2048},
        **{"head_dim": 128, "causal": True},
    }
    score = {"tokens": 2048, "dim": 4096, "pca_rank": 64, "iterations": 300}
    made["timings"] = [
        question(8, 2e6, 1.9e6, 12e6),
        question(64, 9.5e6, 9e6, None),
        timing("anchored_attention_prefill", attention, 100.0, sdpa_flash_plain=90.0, sdpa_efficient_bias=250.0),
        timing("anchored_attention_prefill", {**attention, "head_dim": 64}, 1.0, sdpa_flash_plain=1.0),
        timing("subspace_score", score, 30e3, textbook_float64_bias=2.4e6, eager_float32_bias=9e4),
    ]
    check_evidence(made)
    return made


def test_readme_and_evidence_agree() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    documents = read_folder(REPOSITORY / "engines" / "evidence")
    section = performance_section(documents)
    assert section in readme, "run scripts/readme_tables.py"
    assert replace_section(readme, section) == readme


def test_without_evidence_every_table_names_its_command() -> None:
    section = performance_section([])
    commands = {line.split("`")[1] for line in section.splitlines() if NOT_MEASURED in line}
    scripts = {command.split()[-1] for command in commands}
    assert scripts == {"scripts/gpu_end_to_end.py", "scripts/gpu_check.py", "scripts/gpu_score.py"}
    assert "mermaid" not in section


def test_long_times_have_no_exponent(document: dict[str, Any]) -> None:
    (row,) = [row for row in document["timings"] if row["op"] == "subspace_score"]
    row["peers_us"] = {name: 1.6636e9 for name in row["peers_us"] if name.startswith("textbook")}
    assert any("1664 s (" in line for line in performance_section([document]).splitlines())


def test_rows_hold_the_documents_figures(document: dict[str, Any]) -> None:
    lines = performance_section([document]).splitlines()
    assert "| Test GPU | 8 | 2 s | 1.9 s (0.95×) | 12 s (6.00×) |" in lines
    assert "| Test GPU | 64 | 9.5 s | 9 s (0.95×) | did not run: out of memory |" in lines
    assert "| Test GPU | 2k | 100 µs | 90 µs (0.90×) | 250 µs (2.50×) |" in lines
    assert "| Test GPU | 2048 tokens, PCA to 64 | 30 ms | 2.4 s (80.00×) |" in lines
    missing = [line for line in lines if NOT_MEASURED in line]
    assert any(line.startswith("| any | 16; 32 |") for line in missing)
    assert any(line.startswith("| any | 4k; 8k; 16k |") for line in missing)


def test_the_chart_has_the_totals(document: dict[str, Any]) -> None:
    section = performance_section([document])
    assert 'x-axis frames ["8", "64"]' in section
    assert "bar [2.0, 9.5]" in section and "line [1.9, 9.0]" in section


def test_the_script_finds_a_figure_that_nobody_measured(document: dict[str, Any], tmp_path: Path) -> None:
    evidence = tmp_path / "evidence"
    evidence.mkdir()
    (evidence / "test-gpu-end-to-end.json").write_text(json.dumps(document))
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nThe end.\n")
    command = [sys.executable, str(SCRIPT), f"--readme={readme}", f"--evidence={evidence}"]

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *options], capture_output=True, text=True, check=False)

    assert run("--check").returncode == 1 and "old" in readme.read_text()
    assert run().returncode == 0 and run("--check").returncode == 0
    text = readme.read_text()
    assert text.startswith("# Title\n\n") and text.endswith("\n\nThe end.\n") and "12 s (6.00×)" in text
    readme.write_text(text.replace("12 s (6.00×)", "13 s (6.50×)"))
    done = run("--check")
    assert done.returncode == 1 and "disagrees" in done.stderr


def test_a_document_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="once each"):
        replace_section("no markers", performance_section([]))
