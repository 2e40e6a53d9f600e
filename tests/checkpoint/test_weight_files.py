"""Which files are taken for a checkpoint's weights, what other directories are said to be, and headers that lie."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refused
from safetensors.torch import save_file

from va_export.checkpoint.files import Checkpoint
from va_export.checkpoint.quantised import named_as_unreadable
from va_export.checkpoint.safetensors_header import read_header
from va_export.errors import VaExportError

A, B = {"a": torch.arange(3.0)}, {"b": torch.arange(4.0)}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def write_index(directory: Path, weight_map: dict[str, str]) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("name", ["model-00001-of-00001.safetensors", "pytorch_model.safetensors"])
def test_one_file_without_an_index_is_the_checkpoint(name: str, directory: Path) -> None:
    save_file(A, directory / name)
    save_file(B, directory / "adapter_model.safetensors")  # beside a model, an adapter is not the model
    assert Checkpoint.open(directory).names() == ("a",)


def test_a_whole_set_of_shards_needs_no_index(directory: Path) -> None:
    save_file(A, directory / "model-00001-of-00002.safetensors")
    with refused(directory, 2, 1):
        Checkpoint.open(directory)
    save_file(B, directory / "model-00002-of-00002.safetensors")
    assert Checkpoint.open(directory).names() == ("a", "b")
    save_file(B, directory / "other.safetensors")
    with refused(directory, "other.safetensors"):
        Checkpoint.open(directory)


def test_an_index_may_name_its_shards_as_relative_paths(directory: Path) -> None:
    save_file(A, directory / "x.safetensors")
    save_file(B, directory / "y.safetensors")
    write_index(directory, {"a": "./x.safetensors", "b": "y.safetensors"})
    assert torch.equal(Checkpoint.open(directory).tensor("b"), B["b"])


@pytest.mark.parametrize("name", ["../x.safetensors", "/x", "..", "", "s/x", "x\0", "x" * 300, "missing"])
def test_an_index_names_no_file_elsewhere(name: str, directory: Path) -> None:
    save_file(A, directory / "x.safetensors")
    write_index(directory, {"a": name})
    with pytest.raises(VaExportError):
        Checkpoint.open(directory)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "LoRA"),
        (["model-Q4_K_M.gguf"], "GGUF"),
        (["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], "pickled"),
        (["consolidated.00.pth", "params.json"], "publisher"),
        (["consolidated.safetensors"], "publisher"),
        (["model.onnx", "model.onnx.data"], "ONNX"),
        (["tf_model.h5"], "TensorFlow"),
        (["model.pt"], "pickled"),
        (["model.safetensors.incomplete"], "has not ended"),
    ],
)
@pytest.mark.parametrize("with_config", [True, False])
def test_other_formats_are_called_by_their_names(
    files: list[str], said: str, with_config: bool, tmp_path: Path
) -> None:
    for name in files:
        save_file(A, tmp_path / name)
    if with_config:
        (tmp_path / "config.json").write_text("{}")
    with pytest.raises(VaExportError) as caught:
        Checkpoint.open(tmp_path)
    assert said in caught.value.what
    assert (caught.value.where, bool(caught.value.fix)) == (str(tmp_path), True)


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "merges.txt", "model.safetensors"])
@pytest.mark.parametrize("kind", ["link", "loop", "pipe", "directory"])
def test_a_name_that_leads_to_no_file_is_not_passed_over(name: str, kind: str, directory: Path) -> None:
    """As in a cache of the Hub that is not filled yet: without a tokenizer, other ids would be guessed."""
    save_file(A, directory / "model-00001-of-00001.safetensors")
    path = directory / name
    if kind in ("link", "loop"):
        path.symlink_to("../../blobs/0123" if kind == "link" else path)
    else:
        (os.mkfifo if kind == "pipe" else os.mkdir)(path)
    with refused(path, name):
        Checkpoint.open(directory)


@pytest.mark.parametrize(("arrived", "is_whole"), [(0.0, False), (0.4, False), (0.7, False), (0.9, True), (1.0, True)])
def test_a_download_that_reserved_its_place_is_not_whole(arrived: float, is_whole: bool, directory: Path) -> None:
    """A tenth of zeros may be a model's own: blocks that were put in between start so."""
    save_file({"a": torch.ones(1 << 20)}, directory / "model.safetensors")
    size = (directory / "model.safetensors").stat().st_size
    with (directory / "model.safetensors").open("r+b") as file:
        file.seek(max(int(arrived * size), 100))
        file.write(bytes(size - file.tell()))
    if is_whole:
        assert Checkpoint.open(directory).names() == ("a",)
    else:
        with refused(directory / "model.safetensors", 64):
            Checkpoint.open(directory)


I32, F16, U8, F8 = torch.int32, torch.float16, torch.uint8, torch.float8_e4m3fn


@pytest.mark.parametrize(
    ("tensors", "method"),
    [
        ({"qweight": I32, "qzeros": I32, "scales": F16}, "AWQ"),
        ({"qweight": I32, "qzeros": I32, "scales": F16, "g_idx": I32}, "GPTQ"),
        ({"qweight": U8, "qweight_type": I32}, "GGUF"),
        ({"qweight": torch.int8, "weight_scales": F16}, "EETQ"),
        ({"q_weight": I32, "q_scale": I32, "q_groups": torch.int16}, "EXL2"),
        ({"Qidxs": torch.int16, "SU": F16, "SV": F16}, "QuIP"),
        ({"weight": torch.int16, "scales": F16, "tables": F16, "tables2": F16}, "HIGGS"),
        ({"weight": U8, "weight_scale": F8, "weight_scale_2": torch.float32}, "NVFP4"),
        ({"weight": F8, "weight_scale": torch.float32}, "FP8"),
        ({"weight": torch.int8, "weight_scale": torch.float32}, "integers"),
        ({"weight": torch.uint32, "scales": F16, "biases": F16}, "MLX"),
        ({"weight": torch.uint32}, "uint32"),
    ],
)
def test_each_way_of_quantising_has_its_name(tensors: dict[str, torch.dtype], method: str) -> None:
    told = named_as_unreadable({f"model.layers.0.q_proj.{name}": kind for name, kind in tensors.items()})
    assert told is not None and method in told[0] and told[1]


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [3], "data_offsets": [0, 12], **changes}


@pytest.mark.parametrize(
    "header",
    [
        [],
        7,
        {"a": None},
        {"a": []},
        {"a": entry(shape="3")},
        {"a": entry(shape=[3.0])},
        {"a": entry(shape=[True, 3])},
        {"a": entry(shape=[-3])},
        {"a": entry(shape=[10**40])},
        {"a": entry(dtype=["F32"])},
        {"a": entry(dtype="F4", shape=[24])},
        {"a": entry(data_offsets=[0])},
        {"a": entry(data_offsets=[12, 0])},
        {"a": entry(data_offsets=[float("inf"), 12])},
        {"a": entry(), "b": entry()},  # two tensors in one place
        {"a": entry(shape=[2], data_offsets=[4, 12])},  # a hole before the first
        {"a": entry(shape=[1], data_offsets=[0, 4]), "b": entry(shape=[1], data_offsets=[8, 12])},
    ],
)
def test_headers_that_lie_are_refused(header: Any, tmp_path: Path) -> None:
    raw = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(12))
    with pytest.raises(VaExportError) as caught:
        read_header(path)
    assert (caught.value.where, bool(caught.value.fix)) == (str(path), True)


@pytest.mark.parametrize("raw", [b"", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"1" * 5000, b"nul"])
def test_what_is_no_header_is_refused(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw)
    with pytest.raises(VaExportError):
        read_header(path)


def test_damaged_bytes_are_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({**A, **B}, path)
    whole, dice = path.read_bytes(), random.Random(0)
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(dice.randint(1, 4)):
            damaged[dice.randrange(len(whole) - 28)] = dice.randrange(256)
        path.write_bytes(damaged[: dice.choice([len(whole), dice.randrange(len(whole))])])
        try:
            entries = read_header(path)
        except VaExportError:
            continue
        assert all(0 <= one.offset <= len(whole) for one in entries.values())


def test_an_unreadable_file_is_no_traceback(directory: Path) -> None:
    (directory / "model.safetensors.index.json").mkdir()
    (directory / "model.safetensors").symlink_to(directory / "model.safetensors")
    with pytest.raises(VaExportError):
        Checkpoint.open(directory)
