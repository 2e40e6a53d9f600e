"""What decides an engine: the ingredients whose hash names it in the cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnx
from msgspec import to_builtins

from va_export.machine import nvidia_cards, nvidia_driver
from va_export.tensorrt.engine_info import BuildRequest
from va_export.tensorrt.targets import CURRENT_GPU

_FORMAT = 1  # of the key and of what lies in the cache
# The code that turns an ONNX file into what the builder is given. Comments count too: a needless build is cheap
# beside a wrong engine. A test holds this list against what tensorrt/build.py imports.
BUILD_SOURCES = (
    "tensorrt/build.py",
    "tensorrt/prepare_onnx.py",
    "tensorrt/profiles.py",
    "tensorrt/targets.py",
    "tensorrt/api.py",
    "ops/declaration.py",
    "passes/lower_anchored_attention.py",
    "passes/strip_function_body.py",
)


@dataclass(frozen=True)
class CacheKey:
    """An engine's name in the cache, and what it was made of, for people who look."""

    digest: str
    ingredients: Mapping[str, Any]


def cache_key(
    request: BuildRequest, version: str, graph: str, sha256_of: Callable[[Path], str], weight_files: tuple[Path, ...]
) -> CacheKey:
    """The key of an engine that is to be built.

    Args:
        version: of the TensorRT that builds.
        graph: `graph_sha256` of `request.onnx_path`.
        sha256_of: hashes a file, or knows its hash already.
        weight_files: the files with the weights of `request.onnx_path`.
    """
    ingredients = {
        "format": _FORMAT,
        "graph": graph,
        "weights": [sha256_of(path) for path in weight_files],
        "plugin": None if request.plugin_library is None else sha256_of(request.plugin_library),
        "tensorrt": [request.flavor, version],
        "targets": list(request.targets),
        "hardware": _hardware() if CURRENT_GPU in request.targets else None,
        "attention": request.attention,
        "capacity": request.capacity,
        "ranges": to_builtins(request.ranges),
        "builder": _builder_sources(),
    }
    text = json.dumps(ingredients, sort_keys=True)
    return CacheKey(hashlib.sha256(text.encode()).hexdigest(), ingredients)


def graph_sha256(onnx_path: Path) -> str:
    """SHA-256 of a graph without its notes, which TensorRT does not read: PyTorch's exporter writes the parameters of
    the whole model into every part of it, so that a change elsewhere would count. Weights in files beside it are not
    read.
    """
    model = onnx.load(onnx_path, load_external_data=False)
    _remove_notes(model)
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def _remove_notes(message: Any) -> None:
    for name in ("doc_string", "metadata_props"):
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if field.is_repeated else (value,):
                _remove_notes(part)


@cache
def _builder_sources() -> str:
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for name in BUILD_SOURCES:
        digest.update(hashlib.sha256((package / name).read_bytes()).digest())
    return digest.hexdigest()


def _hardware() -> dict[str, Any]:
    """The GPUs, their order and the driver, which an engine for the present GPU is tuned for."""
    return {
        "cards": [line for card in nvidia_cards() for line in card if line.startswith(("Model:", "Bus Location:"))],
        "driver": nvidia_driver(),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }
