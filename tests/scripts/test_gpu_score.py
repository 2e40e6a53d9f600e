"""scripts/gpu_score.py on the reference, at toy size: what it writes is evidence in form, and can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from va_export.evidence.document import read_evidence

torch = pytest.importorskip("torch")

from va_export.evidence import score_rows  # noqa: E402
from va_export.native.subspace_score import PRODUCTS  # noqa: E402

ROOT = Path(__file__).parents[2]


def test_trial_writes_a_valid_document(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts" / "gpu_score.py", "--device", "cpu", "--tiny", "--output", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    document = read_evidence(tmp_path / "cpu-score.json")
    assert len(document["checks"]) == 3 * len(PRODUCTS) * len(score_rows.TINY)
    assert all(row["passed"] for row in document["checks"])
    for row in document["timings"]:
        assert row["shape"]["iterations"] > 0
        assert row["peers_us"][score_rows.TEXTBOOK] > 0
        assert row["notes"][score_rows.TEXTBOOK].startswith("extrapolated from")
        assert all(row["peers_us"][f"{products}_products_bias"] > 0 for products in PRODUCTS)
    assert document["targets"] == []


def test_a_wrong_score_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    right = score_rows.eager_details

    def shifted(tokens: object, settings: object, dtype: str) -> object:
        details = right(tokens, settings, dtype)  # type: ignore[arg-type]
        if dtype == "float32":
            details.sharing_score[3] += 0.01
            details.labels[:2] = torch.tensor([0, 1])
            details.labels[2:] = 2
        return details

    monkeypatch.setattr(score_rows, "eager_details", shifted)
    rows = list(score_rows.check_rows("cpu", tiny=True))
    assert {row["name"].split()[0]: row["passed"] for row in rows} == {
        "score": False,
        "labels": False,
        "iterations": True,
    }


def test_targets_are_of_the_rows() -> None:
    def row(case: score_rows.ScoreCase, milliseconds: float) -> dict[str, object]:
        return {"shape": score_rows.shape_of(case, 9), "ours_us": 1e3 * milliseconds}

    timings = [row(score_rows.TIMED[0], 59.0), row(score_rows.TIMED[1], 151.0)]
    passed = {target["name"]: target["passed"] for target in score_rows.target_rows(timings)}
    assert passed == {"8 frames, PCA 64": True, "8 frames, no PCA": False, "64 frames": False}


def test_partitions_are_compared_up_to_numbering() -> None:
    assert score_rows.same_partition(torch.tensor([0, 0, 2]), torch.tensor([1, 1, 0]))
    assert not score_rows.same_partition(torch.tensor([0, 0, 2]), torch.tensor([1, 0, 0]))
    assert not score_rows.same_partition(torch.tensor([0, 0, 0]), torch.tensor([1, 1, 0]))
