"""README's blocks, run as they stand: `bundle` is the tiny bundle and `clip.mp4` a real clip."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_docs import COMMANDS, README, blocks

BIN = Path(sys.executable).parent


@pytest.fixture
def workplace(tiny_bundle: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that holds what README's examples name."""
    (tmp_path / "bundle").symlink_to(tiny_bundle)
    (tmp_path / "clip.mp4").symlink_to(clip)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("workplace")
def test_python_runs_from_top_to_bottom(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for block in blocks(README, "python"):
        exec(compile(block, README, "exec"), names)
    assert names["answer"].tokens.size and capsys.readouterr().out.strip()
    # Both kinds of array that the second block speaks of give the same gains, of tokens that lie in four subspaces; of
    # the page's noise they need not, whose subspaces rounding decides.
    generator = np.random.default_rng(0)
    tokens = np.concatenate([generator.normal(size=(32, 3)) @ generator.normal(size=(3, 64)) for _ in range(4)])
    both = (tokens.astype(np.float32), names["torch"].tensor(tokens, dtype=names["torch"].float32))
    scores = [names["subspace_score"](kind, n_subspaces=4) for kind in both]
    masks = (names["is_visual"].numpy(), names["is_visual"])
    gains, same = (
        names["gains_from_score"](score, mask, 160, alpha_k=9.5, alpha_v=2.5)
        for score, mask in zip(scores, masks, strict=True)
    )
    np.testing.assert_allclose(gains[0], same[0].numpy(), atol=1e-4)
    with names["anchors"](names["model"], *gains):
        assert names["model"].generate(inputs_embeds=names["prompt"], max_new_tokens=2).shape == (1, 2)


def command_lines() -> list[list[str]]:
    lines = [line for block in blocks(README, "sh") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def shell(words: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    path = {"PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.run(
        words, env={**os.environ, **path, **environment}, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.usefixtures("workplace")
def test_the_questions_and_checks_run() -> None:
    """Of the checks, the one on a GPU must say in one message that there is none, where there is none."""
    asked = [words for words in command_lines() if words[0] in COMMANDS and words[0] != "va-export"]
    assert {words[0] for words in asked} == {"va-run", "va-check"}
    for words in asked:
        done = shell([*words, "--json"], {})
        told = json.loads(done.stdout)
        if done.returncode:
            assert "--backend" in words and told["error"]["exit_code"] == done.returncode == 2, done.stderr
        else:
            assert told["bundle"] == "bundle", done.stderr


def test_the_exports_plan_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as their checkpoints can be had here: published sizes are known, a directory that is not there is told."""
    monkeypatch.chdir(tmp_path)
    exports = [words for words in command_lines() if words[0] == "va-export"]
    assert len(exports) >= 3
    for words in exports:
        done = shell([*words, "--onnx-only", "--dry-run", "--json"], {"HF_HUB_OFFLINE": "1"})
        told = json.loads(done.stdout)
        if "./InternVL2-8B" in words:
            assert (done.returncode, told["error"]["where"]) == (2, "./InternVL2-8B")
        elif done.returncode:  # no room for the plan: that is the machine's
            assert "needs" in told["error"]["what"], told
        else:
            assert told["files"] and told["memory_bytes"] > 0, done.stderr
