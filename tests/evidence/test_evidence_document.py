"""The form of evidence: what it refuses, what it writes, and every file that is committed."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from refusals import refused

from va_export.errors import VaExportError
from va_export.evidence.device import COMMIT_VARIABLE, current_commit, describe_cpu, measure_ceilings
from va_export.evidence.document import (
    begin_evidence,
    check_evidence,
    check_row,
    failures,
    read_evidence,
    target_row,
    write_evidence,
)

EVIDENCE = Path(__file__).parents[2] / "engines" / "evidence"
SHAPE = {"batch": 1, "query_heads": 32, "kv_heads": 8, "q_len": 1, "kv_len": 2048, "head_dim": 128, "causal": True}


def document() -> dict[str, Any]:
    device = {"name": "NVIDIA H200", "driver": "580.1", "cuda": "13.0", "torch": "2.13.0", "memory": "141 GB"}
    evidence = begin_evidence(device, "0" * 40, {"matmul_bf16_tflops": 790.0, "copy_tb_per_s": 4.3})
    evidence["checks"] += [
        check_row("numbers", True, shape=SHAPE, dtype="float16", max_rel_err=1e-4, tolerance=1e-3),
        check_row("a fact", False, message="it is not so"),
    ]
    evidence["timings"].append(
        {
            "op": "anchored_attention_decode",
            "shape": SHAPE,
            "dtype": "float16",
            "ours_us": 12.0,
            "ours_range_us": [11.0, 14.5],
            "peers_us": {"sdpa_flash_plain": 20.0, "flex_attention_bias": None},
            "peers_range_us": {"sdpa_flash_plain": [19.0, 22.0]},
            "notes": {"flex_attention_bias": "no kernel image"},
        }
    )
    evidence["targets"].append(target_row("decode", 12.0, "<=", 20.0, "us"))
    return evidence


def test_what_the_scripts_write_has_the_form() -> None:
    check_evidence(document())


def setter(*path: str | int, value: Any) -> Callable[[Any], None]:
    def change(evidence: Any) -> None:
        for step in path[:-1]:
            evidence = evidence[step]
        evidence[path[-1]] = value

    return change


def without(*path: str | int) -> Callable[[Any], None]:
    def change(evidence: Any) -> None:
        for step in path[:-1]:
            evidence = evidence[step]
        del evidence[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (without("ceilings"), ""),
        (setter("chekcs", value=[]), ""),
        (without("device", "driver"), "device"),
        (setter("device", "name", value=""), "device.name"),
        (setter("commit", value="main"), "commit"),
        (setter("date", value="yesterday"), "date"),
        (setter("ceilings", "copy_tb_per_s", value=float("inf")), "ceilings.copy_tb_per_s"),
        (setter("checks", value={}), "checks"),
        (without("checks", 0, "tolerance"), "checks[0]"),
        (setter("checks", 0, "passed", value=1), "checks[0].passed"),
        (setter("checks", 0, "max_rel_err", value=2e-3), "checks[0]"),
        (setter("checks", 0, "max_rel_err", value=None), "checks[0]"),
        (setter("checks", 0, "max_rel_err", value=True), "checks[0].max_rel_err"),
        (setter("checks", 0, "tolerance", value=None), "checks[0]"),
        (setter("checks", 1, "name", value="numbers"), ""),
        (setter("timings", 0, "peers_us", "sdpa_flash_plain", value="fast"), "timings[0].peers_us.sdpa_flash_plain"),
        (setter("timings", 0, "ours_us", value=float("nan")), "timings[0].ours_us"),
        (setter("timings", 0, "ours_us", value=15.0), "timings[0]"),
        (setter("timings", 0, "ours_range_us", value=[11.0]), "timings[0].ours_range_us"),
        (setter("timings", 0, "peers_us", value={"sdpa_flash": 1.0}), "timings[0]"),
        (setter("timings", 0, "notes", value={}), "timings[0]"),
        (setter("timings", 0, "notes", "someone_bias", value="is unknown"), "timings[0]"),
        (setter("timings", 0, "peers_range_us", "sdpa_flash_plain", value=[1.0, 2.0]), "timings[0]"),
        (setter("timings", 0, "shape", value={"batch": 1}), "timings[0]"),
        (setter("timings", 0, "shape", value={**SHAPE, "q_len": 1.5}), "timings[0].shape.q_len"),
        (setter("targets", 0, "measured", value=30.0), "targets[0]"),
        (setter("targets", 0, "measured", value=None), "targets[0]"),
        (setter("targets", 0, "relation", value="<"), "targets[0].relation"),
    ],
)  # fmt: skip
def test_another_form_is_refused_with_its_place(change: Callable[[Any], None], where: str) -> None:
    evidence = copy.deepcopy(document())
    change(evidence)
    with pytest.raises(VaExportError) as caught:
        check_evidence(evidence)
    assert caught.value.where == ("evidence: " + where if where else "evidence"), caught.value


def test_written_and_read_again(tmp_path: Path) -> None:
    path = write_evidence(document(), tmp_path, "attention")
    assert path.name == "nvidia-h200-attention.json"
    assert read_evidence(path) == document()
    renamed = path.rename(tmp_path / "nvidia-h100-attention.json")
    with refused(renamed, "nvidia-h100-attention.json"):
        read_evidence(renamed)
    renamed.write_text("{")
    with refused(renamed):
        read_evidence(renamed)


def test_a_cpu_gives_no_evidence(tmp_path: Path) -> None:
    trial = {**document(), "device": describe_cpu()}
    assert write_evidence(trial, tmp_path, "attention").name == "cpu-attention.json"
    with refused(tmp_path / "engines" / "evidence" / "cpu-attention.json", "CPU"):
        write_evidence(trial, tmp_path / "engines" / "evidence", "attention")
    assert not (tmp_path / "engines").exists()


def test_failures_are_named_and_nothing_is_a_failure() -> None:
    assert failures(document()) == ["a fact"]
    assert failures(begin_evidence(describe_cpu(), "0" * 40, {})) == ["nothing was checked and nothing was timed"]
    assert not target_row("never measured", None, ">=", 1.0, "x")["passed"]
    assert not target_row("a ratio to nothing", float("nan"), ">=", 1.0, "x")["passed"]


def test_the_commit_is_said_or_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(COMMIT_VARIABLE, raising=False)
    with refused(tmp_path):
        current_commit(tmp_path)
    monkeypatch.setenv(COMMIT_VARIABLE, "1" * 40)
    assert current_commit(tmp_path) == "1" * 40
    for command in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a", "--allow-empty"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert current_commit(tmp_path) == head.stdout.strip()


def test_ceilings_are_unknown_without_a_gpu() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU: scripts/gpu_check.py measures it")
    assert measure_ceilings() == {"matmul_bf16_tflops": None, "copy_tb_per_s": None}


def test_committed_evidence_has_the_form() -> None:
    """Every file, whichever there are; the folder comes with the first."""
    for path in EVIDENCE.glob("*"):
        if path.name == "README.md" or path.is_dir():
            continue
        assert path.suffix == ".json", path.name
        assert read_evidence(path)["device"]["name"].lower() != "cpu", path.name


def test_what_was_measured_without_a_gpu_says_when_and_of_what() -> None:
    """In folders, in the forms of the scripts that measured; no path of the machine that it was taken on."""
    measured = [path for path in EVIDENCE.glob("*/*") if path.parent.name != "fuzz"]  # whose form is `FuzzLog`
    assert measured
    for path in measured:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text)
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", document["commit"]) and date.fromisoformat(document["date"])
        assert not re.search(r"[\" =]/\w+/", text), path.name
