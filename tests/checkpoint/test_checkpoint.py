"""Opening and reading checkpoints, against files written by the safetensors library and then damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refused
from safetensors.torch import save_file

import va_export.checkpoint.files as checkpoint_module
from va_export.checkpoint.files import Checkpoint
from va_export.checkpoint.hub import HubUnreachable, download

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b.weight": torch.linspace(-1, 1, 6).to(torch.bfloat16),
    "c.bias": torch.tensor([0.5, 0.25], dtype=torch.float16),
}
SHARDS = {"x-1.safetensors": ["a.weight"], "x-2.safetensors": ["b.weight", "c.bias"]}


@pytest.fixture
def single(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "example"}')
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    for file, names in SHARDS.items():
        save_file({name: TENSORS[name] for name in names}, tmp_path / file)
    write_index(tmp_path, {name: file for file, names in SHARDS.items() for name in names})
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


INDEX = "model.safetensors.index.json"


def write_index(directory: Path, weight_map: object) -> None:
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_reads_what_was_written(layout: str, request: pytest.FixtureRequest) -> None:
    directory = request.getfixturevalue(layout)
    checkpoint = Checkpoint.open(directory)
    assert checkpoint.names() == tuple(sorted(TENSORS))
    for name, tensor in TENSORS.items():
        assert checkpoint.shape(name) == tuple(tensor.shape)
        assert checkpoint.dtype(name) == tensor.dtype
        assert torch.equal(checkpoint.tensor(name), tensor)
    assert {file.path.name: file.size for file in checkpoint.files()} == {
        path.name: path.stat().st_size for path in directory.glob("*.safetensors")
    }
    assert not checkpoint.has_tokenizer
    (directory / "tokenizer.model").write_bytes(b"")
    assert checkpoint.has_tokenizer


def test_opening_reads_no_weights(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(checkpoint_module.os, "preadv", refuse)
    checkpoint = Checkpoint.open(single)
    assert checkpoint.shape("a.weight") == (3, 4)
    with pytest.raises(AssertionError, match="weights were read"):
        checkpoint.tensor("a.weight")


def refuses(directory: Path, file: str, *named: object) -> None:
    """Opening the checkpoint is refused because of that file of it, or of the directory where it is ""."""
    with refused(directory / file, *named):
        Checkpoint.open(directory)


def test_names_a_missing_shard(sharded: Path) -> None:
    (sharded / "x-2.safetensors").unlink()
    refuses(sharded, "", 1, 2, "x-2.safetensors")


def test_names_a_truncated_shard_with_its_sizes(sharded: Path) -> None:
    file = sharded / "x-2.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-3])
    refuses(sharded, "x-2.safetensors", len(whole) - 3, len(whole))


@pytest.mark.parametrize("keep", [0, 5, 8, 30])
def test_refuses_a_file_that_ends_in_its_header(single: Path, keep: int) -> None:
    file = single / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refuses(single, "model.safetensors", keep)


def test_refuses_bytes_after_the_data(single: Path) -> None:
    path = single / "model.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"more")
    refuses(single, "model.safetensors", size, size + 4)


def rewrite_header(file: Path, edit: Callable[[str], str]) -> None:
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = edit(raw[8 : 8 + size].decode()).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + size :])


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('"shape":[3,4]', '"shape":[3,5]', ["a.weight", [3, 5]]),
        ('"dtype":"F32"', '"dtype":"F99"', ["F99"]),
        ('"c.bias"', '"a.weight"', ["a.weight"]),
        ('{"', "{'", []),
    ],
)
def test_refuses_a_header_that_contradicts_itself(single: Path, old: str, new: str, named: list[object]) -> None:
    rewrite_header(single / "model.safetensors", lambda header: header.replace(old, new, 1))
    refuses(single, "model.safetensors", *named)


def test_refuses_a_git_lfs_pointer(single: Path) -> None:
    (single / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with refused(single / "model.safetensors") as caught:
        Checkpoint.open(single)
    assert "Git LFS" in str(caught.value.fix)


def test_index_and_shards_must_agree(sharded: Path) -> None:
    index = {name: file for file, names in SHARDS.items() for name in names}
    write_index(sharded, index | {"d.weight": "x-1.safetensors"})
    refuses(sharded, "", "d.weight", "x-1.safetensors")
    write_index(sharded, index | {"a.weight": "x-2.safetensors", "b.weight": "x-1.safetensors"})
    refuses(sharded, "", "a.weight", "x-2.safetensors", "x-1.safetensors")
    write_index(sharded, {name: file for name, file in index.items() if name != "c.bias"})
    refuses(sharded, "", 1, "c.bias")
    write_index(sharded, index | {"a.weight": "../x-1.safetensors"})
    refuses(sharded, INDEX, "../x-1.safetensors")
    write_index(sharded, [])
    refuses(sharded, INDEX, "weight_map")


def test_refuses_a_tensor_in_two_shards(sharded: Path) -> None:
    save_file({name: TENSORS[name] for name in ("a.weight", "b.weight")}, sharded / "x-1.safetensors")
    refuses(sharded, "", "b.weight", "x-1.safetensors", "x-2.safetensors")


def test_refuses_what_is_no_checkpoint(tmp_path: Path) -> None:
    refuses(tmp_path / "nowhere", "")
    refuses(tmp_path, "config.json")
    (tmp_path / "config.json").write_text("{ not json")
    refuses(tmp_path, "config.json", "JSON")
    (tmp_path / "config.json").write_text("[]")
    refuses(tmp_path, "config.json", "list")
    (tmp_path / "config.json").write_text("{}")
    refuses(tmp_path, "", "model.safetensors", INDEX)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    refuses(tmp_path, "", "pytorch_model.bin")


def test_reading_rejects_values_that_are_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "_FINITE_CHECK_ELEMENTS", 7)  # so that the count spans parts
    values = torch.zeros(5, 4)
    values[0, 0], values[2, 2], values[4, 3] = float("nan"), float("inf"), float("-inf")
    save_file({"good": torch.ones(2), "bad": values, "ids": torch.arange(3)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    checkpoint = Checkpoint.open(tmp_path)
    assert torch.equal(checkpoint.tensor("good"), torch.ones(2))
    with refused(tmp_path / "model.safetensors", "bad", 3, 20):
        checkpoint.tensor("bad")
    with refused(tmp_path / "model.safetensors", "ids", "int64"):
        checkpoint.tensor("ids")
    with refused(tmp_path, "absent", fix=False):
        checkpoint.tensor("absent")


def test_empty_tensors_are_read(tmp_path: Path) -> None:
    save_file({"none": torch.zeros(0, 3)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert Checkpoint.open(tmp_path).tensor("none").shape == (0, 3)


def test_download_turns_hub_failures_into_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    asked: list[tuple[str, object]] = []

    def fail(error: Exception) -> Callable[..., str]:
        def snapshot_download(hub_id: str, **options: object) -> str:
            asked.append((hub_id, options["allow_patterns"]))
            raise error

        return snapshot_download

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail(LocalEntryNotFoundError("offline")))
    with refused(huggingface_hub.constants.ENDPOINT, "someone/model", kind=HubUnreachable):
        download("someone/model")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail(HFValidationError("bad id")))
    with refused("someone/model", "v1", "bad id"):
        download("someone/model", "v1")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail(OSError("disk full")))
    with refused(huggingface_hub.constants.ENDPOINT, "someone/model", "disk full", kind=HubUnreachable):
        download("someone/model")
    assert all("*.bin" not in str(patterns) and "*.py" not in str(patterns) for _, patterns in asked)


def test_download_returns_the_directory(monkeypatch: pytest.MonkeyPatch, single: Path) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(single))
    tensor = Checkpoint.open(download("someone/model")).tensor("a.weight")
    np.testing.assert_array_equal(tensor.numpy(), TENSORS["a.weight"].numpy())
