"""Opening and reading checkpoints, against files written by the safetensors library and then damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import va_export.checkpoint.files as checkpoint_module
from va_export.checkpoint.files import Checkpoint
from va_export.checkpoint.hub import download
from va_export.errors import VaExportError

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


def write_index(directory: Path, weight_map: object) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


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


def refused(directory: Path, *parts: str) -> VaExportError:
    with pytest.raises(VaExportError) as caught:
        Checkpoint.open(directory)
    for part in parts:
        assert part in str(caught.value)
    return caught.value


def test_names_a_missing_shard(sharded: Path) -> None:
    (sharded / "x-2.safetensors").unlink()
    refused(sharded, "1 of 2 shards are missing", "x-2.safetensors")


def test_names_a_truncated_shard_with_its_sizes(sharded: Path) -> None:
    file = sharded / "x-2.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-3])
    refused(sharded, "truncated", f"{len(whole) - 3} bytes of {len(whole)}", "x-2.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 8, 30])
def test_refuses_a_file_that_ends_in_its_header(single: Path, keep: int) -> None:
    file = single / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(single, "model.safetensors", "not a safetensors file" if keep < 8 else "truncated")


def test_refuses_bytes_after_the_data(single: Path) -> None:
    with (single / "model.safetensors").open("ab") as file:
        file.write(b"more")
    refused(single, "its header accounts for")


def rewrite_header(file: Path, edit: Callable[[str], str]) -> None:
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = edit(raw[8 : 8 + size].decode()).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + size :])


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"shape":[3,4]', '"shape":[3,5]', "a.weight of shape [3, 5]"),
        ('"dtype":"F32"', '"dtype":"F99"', "unknown type F99"),
        ('"c.bias"', '"a.weight"', "a.weight is there twice"),
        ('{"', "{'", "malformed"),
    ],
)
def test_refuses_a_header_that_contradicts_itself(single: Path, old: str, new: str, reason: str) -> None:
    rewrite_header(single / "model.safetensors", lambda header: header.replace(old, new, 1))
    refused(single, "malformed", reason)


def test_refuses_a_git_lfs_pointer(single: Path) -> None:
    (single / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused(single, "not a safetensors file", "Git LFS")


def test_index_and_shards_must_agree(sharded: Path) -> None:
    index = {name: file for file, names in SHARDS.items() for name in names}
    write_index(sharded, index | {"d.weight": "x-1.safetensors"})
    refused(sharded, "d.weight", "x-1.safetensors, which lacks it")
    write_index(sharded, index | {"a.weight": "x-2.safetensors", "b.weight": "x-1.safetensors"})
    refused(sharded, "a.weight", "but it is in x-1.safetensors")
    write_index(sharded, {name: file for name, file in index.items() if name != "c.bias"})
    refused(sharded, "1 tensors are in the shards but not in the index", "c.bias")
    write_index(sharded, index | {"a.weight": "../x-1.safetensors"})
    refused(sharded, "outside its directory")
    write_index(sharded, [])
    refused(sharded, "no weight_map")


def test_refuses_a_tensor_in_two_shards(sharded: Path) -> None:
    save_file({name: TENSORS[name] for name in ("a.weight", "b.weight")}, sharded / "x-1.safetensors")
    refused(sharded, "b.weight is stored twice", "x-1.safetensors", "x-2.safetensors")


def test_refuses_what_is_no_checkpoint(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no such checkpoint directory", "nowhere")
    refused(tmp_path, "configuration is missing", "config.json")
    (tmp_path / "config.json").write_text("{ not json")
    refused(tmp_path, "not valid JSON")
    (tmp_path / "config.json").write_text("[]")
    refused(tmp_path, "a JSON list")
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, "neither model.safetensors nor")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    refused(tmp_path, "only pickled weights", "pytorch_model.bin")


def test_reading_rejects_values_that_are_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "_FINITE_CHECK_ELEMENTS", 7)  # so that the count spans parts
    values = torch.zeros(5, 4)
    values[0, 0], values[2, 2], values[4, 3] = float("nan"), float("inf"), float("-inf")
    save_file({"good": torch.ones(2), "bad": values, "ids": torch.arange(3)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    checkpoint = Checkpoint.open(tmp_path)
    assert torch.equal(checkpoint.tensor("good"), torch.ones(2))
    with pytest.raises(VaExportError, match="bad holds 3 NaN or infinite values of 20"):
        checkpoint.tensor("bad")
    with pytest.raises(VaExportError, match=r"ids is torch\.int64"):
        checkpoint.tensor("ids")
    with pytest.raises(VaExportError, match="no tensor absent"):
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
    with pytest.raises(VaExportError, match="not in the local cache"):
        download("someone/model")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail(HFValidationError("bad id")))
    with pytest.raises(VaExportError, match="refused someone/model at revision v1: bad id"):
        download("someone/model", "v1")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail(OSError("disk full")))
    with pytest.raises(VaExportError, match="disk full"):
        download("someone/model")
    assert all("*.bin" not in str(patterns) and "*.py" not in str(patterns) for _, patterns in asked)


def test_download_returns_the_directory(monkeypatch: pytest.MonkeyPatch, single: Path) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(single))
    tensor = Checkpoint.open(download("someone/model")).tensor("a.weight")
    np.testing.assert_array_equal(tensor.numpy(), TENSORS["a.weight"].numpy())
