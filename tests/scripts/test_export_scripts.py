"""The full-size export and the comparison with the usual way, without their hours: what they conclude from what."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from script_files import load_script

from va_export.evidence.processes import Watched
from va_export.models import published_config


@pytest.fixture
def full_size(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_script("full_size_export")


def run_full_size(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, watched: Watched, *more: str
) -> tuple[int, dict[str, Any], list[str]]:
    """The script's main, with an export that is played: it writes a bundle of one data file."""
    commands: list[str] = []

    def watch(command: list[str], *, folder: Path, cwd: Path) -> Watched:
        commands.extend(command)
        bundle = Path(command[command.index("-o") + 1])
        (bundle / "onnx").mkdir(parents=True)
        (bundle / "onnx" / "x.onnx.data").write_bytes(bytes(1000))
        manifest = {"model": {"weights": "random", "text": {"num_layers": 32}}, "libraries": {}, "files": {"x": {}}}
        (bundle / "manifest.json").write_text(json.dumps(manifest))
        assert bundle.is_relative_to(folder)
        return watched

    monkeypatch.setattr(script, "watch", watch)
    monkeypatch.setattr(script, "current_commit", lambda _: "c" * 40)
    arguments = ["internvl2-8b", "--work", str(tmp_path), "--evidence", str(tmp_path / "e.json"), *more]
    monkeypatch.setattr(sys, "argv", ["full_size_export", *arguments])
    code = script.main()
    return code, json.loads((tmp_path / "e.json").read_text()), commands


GOOD = Watched(0, 40.0, int(1.4e9), ({"pid": 1, "command": "x", "peak_rss": 1},), 17_000)


def test_a_good_export_meets_its_targets(
    full_size: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, document, command = run_full_size(full_size, monkeypatch, tmp_path, GOOD)
    assert code == 0 and [target["passed"] for target in document["targets"]] == [True, True]
    assert document["export"]["processes"] and document["copy"]["bytes"] == 1000
    assert document["bundle"]["decoder_layers"] == 32 and document["machine"]["cores"] >= 1
    assert {"--weights", "random", "--onnx-only", "--no-parity"} <= set(command)
    assert "--num-decoder-layers" not in command  # all
    assert [path.name for path in tmp_path.iterdir()] == ["e.json"]


@pytest.mark.parametrize("passed", [True, False])
def test_a_proof_is_kept_whether_it_passed_or_not(
    full_size: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, passed: bool
) -> None:
    def proved(command: list[str], *, folder: Path, cwd: Path) -> Watched:
        bundle = Path(command[command.index("-o") + 1])
        bundle = bundle if passed else bundle.with_name(bundle.name + ".failed")
        (bundle / "onnx").mkdir(parents=True)
        manifest = {"model": {"weights": "random", "text": {"num_layers": 32}}, "libraries": {}, "files": {}}
        (bundle / "manifest.json").write_text(json.dumps(manifest))
        (bundle / "parity.json").write_text(json.dumps({"passed": passed}))
        assert "--no-parity" not in command and command[-2:] == ["--frames", "1"]
        return GOOD if passed else replace(GOOD, code=1)

    monkeypatch.setattr(full_size, "watch", proved)
    monkeypatch.setattr(full_size, "current_commit", lambda _: "c" * 40)
    arguments = ["internvl2-8b", "--prove", "--work", str(tmp_path), "--evidence", str(tmp_path / "e.json")]
    monkeypatch.setattr(sys, "argv", ["full_size_export", *arguments, "--", "--frames", "1"])
    assert full_size.main() == (0 if passed else 1)
    document = json.loads((tmp_path / "e.json").read_text())
    assert document["parity"] == {"passed": passed} and document["targets"] == []


@pytest.mark.parametrize(
    "bad", [replace(GOOD, peak_rss=int(3.1e9)), replace(GOOD, seconds=90.0), replace(GOOD, code=2)]
)
def test_too_much_memory_or_time_or_a_failure_is_told(
    full_size: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bad: Watched
) -> None:
    code, document, _ = run_full_size(full_size, monkeypatch, tmp_path, bad)
    assert code == 1 and document["export"]["code"] == bad.code
    assert bad.code or not all(target["passed"] for target in document["targets"])


def test_engines_have_no_targets_of_an_export(
    full_size: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    much = replace(GOOD, peak_rss=int(9e9))
    code, document, command = run_full_size(
        full_size, monkeypatch, tmp_path, much, "--layers", "2", "--", "--target", "sm89"
    )
    assert code == 0 and document["targets"] == [] and "--onnx-only" not in command
    assert command[-4:] == ["--num-decoder-layers", "2", "--target", "sm89"]


@pytest.mark.parametrize(("ours", "peer", "passed"), [
    ((0, 1e9), (0, 3.1e9), True), ((0, 1.2e9), (0, 3.1e9), False), ((1, 1e9), (0, 9e9), False),
    ((0, 1e9), (-9, 8e9), True), ((0, 1e9), (1, 9e9), False),
])  # fmt: skip
def test_the_comparison_needs_both_and_a_third(
    ours: tuple[int, float], peer: tuple[int, float], passed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = load_script("benchmark_export")
    results = iter([Watched(0, 1, 1), *(Watched(code, 2.0, int(rss)) for code, rss in (ours, peer))])
    monkeypatch.setattr(script, "watch", lambda _: next(results))
    row = script.compare(tmp_path / "place", "owner/model", 2) if (tmp_path / "place").mkdir() is None else {}
    assert row["passed"] == passed and f"{peer[1] / 1e9:5.2f} GB" in script.row_text(row)


def test_the_comparison_is_at_the_published_width() -> None:
    config = load_script("benchmark_export").cut_config("OpenGVLab/InternVL2-8B", 4)
    full = published_config("OpenGVLab/InternVL2-8B")
    assert full is not None and config["llm_config"] == {**full["llm_config"], "num_hidden_layers": 4}
    assert config["vision_config"]["num_hidden_layers"] == 2
