"""The score's benchmark: its answers are compared, its rows are evidence, and a miss is a failure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from script_files import load_script

from va_export.evidence.document import begin_evidence, check_evidence, failures

CEILINGS = {"matmul_bf16_tflops": None, "copy_tb_per_s": None}
DEVICE = {"name": "Some CPU", "driver": None, "cuda": None, "torch": None}


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script("benchmark_score")


@pytest.mark.filterwarnings("ignore:subspace_score stopped", "ignore:Graph is not fully connected")
def test_answers_are_held_to_the_textbook(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # With 24 subspaces for so few tokens, labels would be left to rounding, and scores with them.
    monkeypatch.setattr(script, "SUBSPACES", 4)
    textbook = script.Textbook(script.video_tokens(128), 12)
    whole = textbook.differences()
    assert {dtype: of for dtype, (of, _) in whole.items()} == {"float32": "score", "float64": "C"}
    assert 0 < whole["float64"][1] <= script.TOLERANCES["float64"]
    assert whole["float32"][1] <= script.TOLERANCES["float32"]
    monkeypatch.setattr(script, "WHOLE", 32)
    few = textbook.differences()
    assert few["float64"][0] == "C after 8 iterations"
    assert all(few[dtype][1] <= tolerance for dtype, tolerance in script.TOLERANCES.items())
    other = script.scored
    monkeypatch.setattr(script, "scored", lambda tokens, *rest, **options: other(tokens[::-1], *rest, **options))
    assert textbook.differences()["float64"][1] > script.TOLERANCES["float64"]


def case(ours: float) -> dict[str, Any]:
    times = {"ours": [ours] * 3, "textbook": [60.0, 61.0, 62.0], "iterations": 500}
    return {"float32": times, "float64": times, "differences": {"float32": ("score", 1e-4), "float64": ("C", 1e-9)}}


@pytest.mark.parametrize(("ours", "missed"), [(0.9, 0), (1.1, 1)])
def test_rows_are_evidence_and_a_missed_ratio_is_a_failure(
    script: Any, monkeypatch: pytest.MonkeyPatch, ours: float, missed: int
) -> None:
    answers = {"--case": case(ours), "--memory": {"peak": 1 << 20}}
    monkeypatch.setattr(script, "in_a_process", lambda what, *rest: answers[what])
    document = begin_evidence(DEVICE, "0" * 40, CEILINGS)
    script.benchmark(document, script.TARGET_TOKENS, script.TARGET_RANK)
    check_evidence(document)
    assert len(document["timings"]) == len(document["checks"]) == 2
    assert len(failures(document)) == missed
    answers["--case"]["differences"]["float64"] = ("C", 1e-5)
    script.benchmark(document := begin_evidence(DEVICE, "0" * 40, CEILINGS), 512, 0)
    assert failures(document) == ["C of 512 tokens, PCA none, float64, against the textbook"]


def test_memory_beyond_the_bound_is_a_failure(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"process_peak": 17e9, "iterations": 10, "seconds": 2.0, "converged": True}
    asked = []
    monkeypatch.setattr(script, "in_a_process", lambda *arguments: asked.append(arguments) or answer)
    document = begin_evidence(DEVICE, "0" * 40, CEILINGS)
    script.measure_long(document, 16384, 300)
    check_evidence(document)
    (failure,) = failures(document)
    assert "16384 tokens" in failure and "10 iterations" in failure
    assert asked == [("--memory", 16384, script.TARGET_RANK, "float32", 300)]


def test_tokens_are_the_same_in_every_process(script: Any) -> None:
    tokens = script.video_tokens(64)
    assert tokens.shape == (64, script.DIM)
    np.testing.assert_array_equal(tokens, script.video_tokens(64))
    assert script.cpu_name()
