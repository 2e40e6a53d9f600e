"""A checkpoint in four shards: the same bundle as from one file, its files named and hashed, its faults found first."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import va_export
from safetensors.numpy import load_file, save_file

OPTIONS = ("--onnx-only", "--components", "embedding")
INDEX = "model.safetensors.index.json"


def shard(number: int) -> str:
    return f"model-{number:05}-of-00004.safetensors"


@pytest.fixture
def sharded(golden_checkpoint: Path, tmp_path: Path) -> Path:
    """The golden checkpoint's tensors, dealt out to four shards."""
    directory = tmp_path / "sharded"
    directory.mkdir()
    (directory / "config.json").write_bytes((golden_checkpoint / "config.json").read_bytes())
    weights = load_file(golden_checkpoint / "model.safetensors")
    index = {name: shard(1 + position % 4) for position, name in enumerate(weights)}
    for file in set(index.values()):
        save_file({name: weights[name] for name in weights if index[name] == file}, directory / file)
    (directory / INDEX).write_text(json.dumps({"weight_map": index}))
    return directory


def test_the_bundle_is_that_of_one_file(sharded: Path, golden_checkpoint: Path, tmp_path: Path) -> None:
    for name, model in (("one", golden_checkpoint), ("four", sharded)):
        outcome = va_export("--model", model, "-o", tmp_path / name, *OPTIONS)
        assert outcome.code == 0, outcome.stderr
    one, four = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("one", "four"))
    onnx = {name for name in one["files"] if name.startswith("onnx/")}
    assert len(onnx) == 2 and {name: one["files"][name] for name in onnx} == {n: four["files"][n] for n in onnx}
    content = {file.name: file.read_bytes() for file in sharded.glob("*.safetensors")}
    assert set(content) == {shard(number) for number in range(1, 5)}
    assert four["model"]["checkpoint_files"] == {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in content.items()
    }


def remove(directory: Path) -> None:
    (directory / shard(3)).unlink()


def truncate_in_the_last_tensor(directory: Path) -> None:
    os.truncate(directory / shard(4), (directory / shard(4)).stat().st_size - 2)


def exchange(directory: Path) -> None:
    first, second = (directory / shard(number) for number in (1, 2))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def forget_a_tensor(directory: Path) -> None:
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"].pop(sorted(index["weight_map"])[0])
    (directory / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(("damage", "where", "named"), [
    (remove, "", [1, 4, shard(3)]),
    (truncate_in_the_last_tensor, shard(4), []),
    (exchange, "", [shard(1), shard(2)]),
    (forget_a_tensor, "", [1]),
])  # fmt: skip
@pytest.mark.parametrize("dry", [False, True])
def test_damage_is_named_before_anything_is_written(
    sharded: Path, tmp_path: Path, damage: Callable[[Path], None], where: str, named: list[object], dry: bool
) -> None:
    damage(sharded)
    outcome = va_export("--model", sharded, "-o", tmp_path / "place" / "b", *OPTIONS, *(["--dry-run"] if dry else []))
    outcome.refuses(sharded / where, *named)
    assert "export embedding" not in outcome.stderr and not (tmp_path / "place").exists()
