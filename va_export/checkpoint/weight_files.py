"""Which files hold a checkpoint's weights, and their headers.

One `model.safetensors`; or the shards that an index names; or, without an index, the one file of weights or one whole
set of shards that is there. A directory that holds something else is refused as what it is.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path

from va_export.checkpoint.json_files import INDEX_FILE, read_json
from va_export.checkpoint.safetensors_header import TensorEntry, read_header
from va_export.errors import VaExportError

SINGLE_FILE = "model.safetensors"
_SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)\.safetensors")
_READ_SUFFIXES = (".json", ".safetensors", ".model", ".txt")
# What people take for a checkpoint: pattern, what it is, what to do instead.
_OTHER_FORMATS = (
    (
        "adapter_*",
        "a LoRA adapter, not a model",
        "merge it into its base model (peft: merge_and_unload) and give the directory that saves",
    ),
    ("*.gguf", "weights for llama.cpp (GGUF)", "give the original checkpoint in safetensors"),
    (
        "consolidated*",
        "weights in their publisher's own layout",
        "give the repository's files for transformers: config.json and model*.safetensors",
    ),
    ("*.onnx", "an ONNX model, not a checkpoint", "give the checkpoint that it was exported from"),
    ("*.engine", "TensorRT engines, not a checkpoint", "give the checkpoint that they were built from"),
    (
        "*.bin",
        "only pickled weights",
        "convert it to safetensors; pickles can run code and are not opened",
    ),
    ("*.pt*", "only pickled weights", "convert it to safetensors; pickles can run code and are not opened"),
    ("*.ckpt", "only pickled weights", "convert it to safetensors; pickles can run code and are not opened"),
    ("*.incomplete", "a download that has not ended", "go on with it, or start it anew"),
    ("*.aria2", "a download that has not ended", "go on with it, or start it anew"),
    ("*.part", "a download that has not ended", "go on with it, or start it anew"),
    ("*.h5", "weights for TensorFlow", "give the checkpoint in safetensors"),
    ("*.msgpack", "weights for Flax", "give the checkpoint in safetensors"),
)


def read_weight_files(directory: Path) -> tuple[list[Path], dict[str, TensorEntry]]:
    """The files of weights and the headers of all tensors in them.

    Raises:
        VaExportError: no weights, or in another format; a missing, cut or malformed shard; an index that disagrees with
            its shards; a tensor that is stored twice.
    """
    index = None
    if (directory / SINGLE_FILE).is_file():
        shards = [directory / SINGLE_FILE]
    elif (directory / INDEX_FILE).is_file():
        index = _read_index(directory / INDEX_FILE)
        shards = [directory / name for name in sorted(set(index.values()))]
    else:
        shards = _without_index(directory)
    entries = _read_entries(shards)
    if index is not None:
        _check_index(directory, index, entries)
    return shards, entries


def check_entries(directory: Path) -> None:
    """Refuse a directory in which a name that may be read leads to no file: such a file is not left out in silence.

    Raises:
        VaExportError: a link that leads nowhere, as in a cache of the Hub that is not filled yet, or no regular file.
    """
    for path in sorted(directory.iterdir()):
        if path.suffix not in _READ_SUFFIXES or _is_file(path):
            continue
        what = f"{path.name} is no file"
        if path.is_symlink():
            what = f"{path.name} is a link that leads to no file: {path.readlink()}"
        raise VaExportError(what, where=path, fix="download it again, or remove it if the model does not need it")


def refuse_by_what_is_there(directory: Path) -> None:
    """Refuse a directory that holds a model in another form; returns where it holds none at all.

    Raises:
        VaExportError: naming what it holds.
    """
    names = sorted(path.name for path in directory.iterdir())
    for pattern, what, fix in _OTHER_FORMATS:
        if found := [name for name in names if Path(name).match(pattern)]:
            raise VaExportError(f"this directory holds {what} ({', '.join(found[:3])})", where=directory, fix=fix)


def _without_index(directory: Path) -> list[Path]:
    """The one file of weights, or all shards of one set."""
    others = ("adapter_*", "consolidated*")
    files = sorted(
        path for path in directory.glob("*.safetensors") if not any(path.match(pattern) for pattern in others)
    )
    shards = [_SHARD.fullmatch(path.name) for path in files]
    if len(files) == 1 and (shards[0] is None or int(shards[0][3]) == 1):
        return files
    if not files:
        refuse_by_what_is_there(directory)
        raise VaExportError(
            f"neither {SINGLE_FILE} nor {INDEX_FILE} is there",
            where=directory,
            fix="give the directory that holds the weights",
        )
    sets = {(match[1], int(match[3])) for match in shards if match is not None}
    if None in shards or len(sets) != 1:
        raise VaExportError(
            f"there are {len(files)} files of weights and no {INDEX_FILE} that says which belong to the model: "
            f"{', '.join(path.name for path in files[:3])}",
            where=directory,
            fix="download the index, or leave only the model's own files",
        )
    _, count = sets.pop()
    numbers = sorted(int(match[2]) for match in shards if match is not None)
    if len(files) != count or numbers != list(range(1, count + 1)):
        raise VaExportError(
            f"of {count} shards {len(files)} are there, and no {INDEX_FILE}",
            where=directory,
            fix="download the missing files",
        )
    return files


def _read_index(path: Path) -> dict[str, str]:
    """Tensor name → file name of its shard."""
    stated = read_json(path, what="index of shards").get("weight_map")
    if not isinstance(stated, dict) or not stated or not all(isinstance(name, str) for name in stated.values()):
        raise VaExportError(
            "the index of shards has no weight_map of names to files", where=path, fix="download it again"
        )
    weight_map = {tensor: posixpath.normpath(name) for tensor, name in stated.items()}  # "./name" is "name"
    for name in weight_map.values():
        if "/" in name or "\0" in name or name in (".", ".."):
            raise VaExportError(
                f"the index names a shard outside its directory: {name!r}", where=path, fix="download it again"
            )
    return weight_map


def _read_entries(shards: list[Path]) -> dict[str, TensorEntry]:
    missing = [path.name for path in shards if not _is_file(path)]
    if missing:
        raise VaExportError(
            f"{len(missing)} of {len(shards)} shards are missing: {', '.join(missing[:6])}",
            where=shards[0].parent,
            fix="download the missing files",
        )
    entries: dict[str, TensorEntry] = {}
    for path in shards:
        for name, entry in read_header(path).items():
            if name in entries:
                raise VaExportError(
                    f"tensor {name} is stored twice, in {entries[name].file.name} and {path.name}",
                    where=path.parent,
                    fix="download the shards again, all of one version",
                )
            entries[name] = entry
    return entries


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _check_index(directory: Path, index: Mapping[str, str], entries: Mapping[str, TensorEntry]) -> None:
    """The index and the shards must name the same tensors in the same files."""
    for name, file in sorted(index.items()):
        if name not in entries:
            what = f"the index puts tensor {name} in {file}, which lacks it"
        elif entries[name].file.name != file:
            what = f"the index puts tensor {name} in {file}, but it is in {entries[name].file.name}"
        else:
            continue
        raise VaExportError(what, where=directory, fix="download the index and the shards again, of one version")
    extra = sorted(set(entries) - set(index))
    if extra:
        raise VaExportError(
            f"{len(extra)} tensors are in the shards but not in the index, first {extra[0]}",
            where=directory,
            fix="the index belongs to another version of the shards: download both again",
        )
