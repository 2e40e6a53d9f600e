"""Writes a traced graph with its weights, as the exporter does without its journal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from va_export.checkpoint.files import Checkpoint
from va_export.graph.stream_weights import stream_weights
from va_export.graph.weight_layout import data_bytes, layout_weights
from va_export.graph.write_onnx import data_path, reserve, write_graph
from va_export.models.family import WeightSource


def write_onnx(model: ir.Model, path: Path, checkpoint: Checkpoint, weight_map: Mapping[str, WeightSource]) -> None:
    slots = layout_weights(model)
    reserve(data_path(path), data_bytes(slots))
    write_graph(model, path, slots)
    assert not stream_weights(data_path(path), slots, weight_map, checkpoint).unusable
