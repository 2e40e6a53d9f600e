"""Data files against NumPy's own slicing and conversion; and from any point where a run may have stopped."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused
from safetensors.torch import save_file

from va_export.checkpoint.files import Checkpoint
from va_export.documents import decode, encode
from va_export.graph import data_file, weight_pieces
from va_export.graph import stream_weights as module
from va_export.graph.stream_weights import Mark, find_unusable, stream_weights
from va_export.graph.weight_layout import WeightSlot, data_bytes
from va_export.graph.write_onnx import reserve
from va_export.models.family import RowBlocks, WeightSource

PACKED = RowBlocks(groups=3, blocks_per_group=4, block_rows=5, start=1, stop=3)
SOURCES = {
    "embedding": WeightSource("embedding", (37, 24)),
    "keys": WeightSource("packed", (60, 8), PACKED),
    "keys_turned": WeightSource("packed", (60, 8), PACKED),
    "turned": WeightSource("linear", (29, 13)),
    "bias": WeightSource("bias", (7,)),
    "patches": WeightSource("patches", (6, 3, 2, 2)),
}
TENSORS = {
    source.checkpoint_name: torch.randn(source.checkpoint_shape, generator=torch.Generator().manual_seed(1))
    for source in SOURCES.values()
}


def again(thing: Any) -> Any:
    """Written to a journal and read from it."""
    return decode(encode(thing, indent=None), type(thing), what="it", where="journal", fix="")


def slots_of(dtype: str = "FLOAT16") -> tuple[WeightSlot, ...]:
    slots, end = [], 0
    itemsize = 4 if dtype == "FLOAT" else 2
    for name, source in SOURCES.items():
        transposed = "turned" in name
        shape = source.shape[::-1] if transposed else source.shape
        offset = -(-end // 64) * 64
        slots.append(WeightSlot(name, dtype, shape, transposed, offset, int(np.prod(shape)) * itemsize))
        end = offset + slots[-1].length
    return tuple(slots)


def expected(slots: Sequence[WeightSlot]) -> bytes:
    content = bytearray(data_bytes(slots))
    for slot in slots:
        source = SOURCES[slot.name]
        values = TENSORS[source.checkpoint_name].to(torch.float32).numpy()
        if source.blocks is not None:
            values = values.reshape(3, 4, 5, 8)[:, 1:3].reshape(30, 8)
        values = values.T if slot.transposed else values
        content[slot.offset : slot.offset + slot.length] = values.astype(np.float16).tobytes()
    return bytes(content)


@pytest.fixture(params=[torch.float32, torch.float16], ids=str)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoint:
    save_file({name: value.to(request.param) for name, value in TENSORS.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    return Checkpoint.open(tmp_path)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_pieces, "BLOCK_ELEMENTS", 50)
    monkeypatch.setattr(weight_pieces, "PIECE_BYTES", 150)
    monkeypatch.setattr(weight_pieces, "TILE_ROWS", 3)
    monkeypatch.setattr(weight_pieces, "TILE_COLUMNS", 4)
    monkeypatch.setattr(data_file, "_CHUNK", 70)
    monkeypatch.setattr(module, "MARK_BYTES", 300)


def stream(path: Path, checkpoint: Checkpoint, **options: Any) -> tuple[module.Streamed, list[Mark], int]:
    slots, marks, counted = slots_of(), [], 0

    def count(more: int) -> None:
        nonlocal counted
        counted += more

    if not path.exists():
        reserve(path, data_bytes(slots))
    streamed = stream_weights(path, slots, SOURCES, checkpoint, on_mark=marks.append, on_bytes=count, **options)
    return streamed, marks, counted


def test_bytes_are_those_of_numpy(checkpoint: Checkpoint, tmp_path: Path) -> None:
    slots = slots_of()
    streamed, marks, counted = stream(tmp_path / "d", checkpoint)
    content = (tmp_path / "d").read_bytes()
    assert content == expected(slots)
    assert streamed.sha256 == hashlib.sha256(content).hexdigest()
    assert counted == len(content) and streamed.unusable == {}
    assert len(marks) > 3 and marks[-1].slots == len(slots)
    for mark in marks:
        assert mark.sha256 == hashlib.sha256(content[: mark.bytes]).hexdigest()
        assert again(mark) == mark
    assert all(again(slot) == slot for slot in slots)


@pytest.mark.parametrize("checkpoint", [torch.float32], indirect=True)
@pytest.mark.parametrize("workers", [1, 5])
def test_bytes_and_marks_are_the_same_with_any_number_of_threads(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    _, marks, _ = stream(tmp_path / "two", checkpoint)
    monkeypatch.setattr(module, "WORKERS", workers)
    threads = torch.get_num_threads()
    checkpoint.release()  # all of them open it at once
    assert stream(tmp_path / "d", checkpoint)[1] == marks
    assert (tmp_path / "d").read_bytes() == expected(slots_of()) and torch.get_num_threads() == threads


def names_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fills with the names of the tensors that are read from now on."""
    names: list[str] = []
    rows = Checkpoint.rows
    monkeypatch.setattr(Checkpoint, "rows", lambda self, name, *span: (names.append(name), rows(self, name, *span))[1])
    return names


@pytest.mark.parametrize("checkpoint", [torch.float16], indirect=True)
def test_from_every_mark_the_rest_is_read_and_no_more(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, marks, _ = stream(tmp_path / "d", checkpoint)
    content = (tmp_path / "d").read_bytes()
    for count, mark in enumerate(marks, 1):
        torn = bytearray(content)
        torn[mark.bytes :] = os.urandom(len(content) - mark.bytes)
        (tmp_path / "d").write_bytes(torn)
        with monkeypatch.context() as patch:
            read = names_read(patch)
            again, more, counted = stream(tmp_path / "d", checkpoint, marks=marks[:count])
        small_again = [SOURCES[slot.name].checkpoint_name for slot in slots_of()[mark.slots :]]
        assert list(dict.fromkeys(read)) == list(dict.fromkeys(small_again))
        assert (tmp_path / "d").read_bytes() == content and again.sha256 == whole.sha256 and counted == len(content)
        assert len(more) == len(marks) - count


@pytest.mark.parametrize("checkpoint", [torch.float16], indirect=True)
@pytest.mark.parametrize("damage", ["first", "middle", "last", "short", "marks"])
def test_a_torn_write_is_found_and_mended(checkpoint: Checkpoint, tmp_path: Path, damage: str) -> None:
    """What a mark vouched for is not there after all: work goes on from the last mark that is true."""
    _, marks, _ = stream(tmp_path / "d", checkpoint)
    content = (tmp_path / "d").read_bytes()
    torn = bytearray(content)
    if damage == "short":
        del torn[len(torn) // 2 :]
    elif damage == "marks":
        marks = [Mark(mark.slots, mark.bytes + 1, mark.sha256) for mark in marks]
    else:
        torn[{"first": 0, "middle": len(torn) // 2, "last": -1}[damage]] ^= 0x40
    (tmp_path / "d").write_bytes(torn)
    again, _, counted = stream(tmp_path / "d", checkpoint, marks=marks)
    assert (tmp_path / "d").read_bytes() == content and counted == len(content)
    assert again.sha256 == hashlib.sha256(content).hexdigest()


def rewritten(checkpoint: Checkpoint, **values: float) -> Checkpoint:
    tensors = {name: checkpoint.tensor(name).to(torch.float32) for name in checkpoint.names()}
    for name, value in values.items():
        tensors[name].view(-1)[-1] = value
    checkpoint.release()
    save_file(tensors, checkpoint.directory / "model.safetensors")
    return Checkpoint.open(checkpoint.directory)


@pytest.mark.parametrize("checkpoint", [torch.float32], indirect=True)
def test_every_weight_that_does_not_fit_is_reported(checkpoint: Checkpoint, tmp_path: Path) -> None:
    bad = rewritten(checkpoint, embedding=1e5, linear=float("nan"), patches=-2e5, bias=1e-9)
    streamed, marks, _ = stream(tmp_path / "d", bad)
    assert streamed.sha256 == "" and all(mark.slots == 0 for mark in marks)
    assert set(streamed.unusable) == {"embedding", "turned", "patches"}
    assert streamed.unusable["embedding"].largest == 1e5 and streamed.unusable["embedding"].overflow == 1
    assert streamed.unusable["turned"].not_finite == 1 and streamed.unusable["patches"].elements == 72
    assert streamed.losses["bias"].to_zero == 1
    assert set(find_unusable(SOURCES, torch.float16, bad)) == {"embedding", "turned", "patches"}
    assert set(find_unusable(SOURCES, torch.bfloat16, bad)) == {"turned"}
    clipped, _, _ = stream(tmp_path / "e", bad, clip=True)
    assert set(clipped.unusable) == {"turned"}


@pytest.mark.parametrize("checkpoint", [torch.float32], indirect=True)
def test_what_marks_knew_of_losses_is_not_forgotten(checkpoint: Checkpoint, tmp_path: Path) -> None:
    small = rewritten(checkpoint, embedding=1e-9, patches=1e5)
    whole, marks, _ = stream(tmp_path / "d", small, clip=True)
    second, _, _ = stream(tmp_path / "d", small, clip=True, marks=[again(m) for m in marks[:2]])
    assert second.losses == whole.losses and set(whole.losses) == {"embedding", "patches"}


@pytest.mark.parametrize("checkpoint", [torch.float16], indirect=True)
def test_a_checkpoint_that_gets_shorter_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    file = checkpoint.directory / "model.safetensors"
    os.truncate(file, file.stat().st_size - 4)
    with refused(file):
        stream(tmp_path / "d", checkpoint)
