"""Engines built ahead of time by TensorRT-RTX, on a machine that may have no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from refusals import refused
from synthetic_decoder import DecoderShape, save_decoder

from va_export.bundle.tensors import DimensionRange, Profiles
from va_export.models.component import Component
from va_export.settings import Limits
from va_export.tensorrt.api import TensorRT
from va_export.tensorrt.build import build_engine
from va_export.tensorrt.build_log import OnProgress
from va_export.tensorrt.engine_info import BuildRequest, EngineInfo
from va_export.tensorrt.inspect_engine import find_plugin_records
from va_export.tensorrt.targets import DEFAULT_TARGETS

TARGETS = DEFAULT_TARGETS["tensorrt-rtx"]


def _build(onnx_path: Path, ranges: Profiles, *, on_progress: OnProgress | None = None, **options: Any) -> EngineInfo:
    settings = {"targets": TARGETS, "capacity": 96, **options}
    request = BuildRequest(onnx_path, "tensorrt-rtx", ranges=ranges, **settings)
    return build_engine(request, onnx_path.with_suffix(".engine"), on_progress)


@pytest.mark.parametrize(
    ("dtype", "layers", "targets"),
    [("float32", 2, TARGETS), ("float16", 3, TARGETS), ("bfloat16", 1, TARGETS), ("float16", 1, ("sm75", "sm121"))],
)
def test_an_engine_holds_the_plugin_once_a_layer_and_profile(
    rtx: TensorRT,
    plugin_library: Path,
    decoder_ranges: Profiles,
    tmp_path: Path,
    dtype: str,
    layers: int,
    targets: tuple[str, ...],
) -> None:
    shape = DecoderShape(layers=layers, head_dim=64, dtype=dtype)
    path = save_decoder(shape, tmp_path / "decoder.onnx")
    info = _build(path, decoder_ranges, plugin_library=plugin_library, targets=targets)
    assert [profile.name for profile in info.profiles] == ["prefill", "decode"]
    assert info.layer_counts["PLUGIN_V3"] == len(info.plugin_nodes) == layers
    assert info.layer_counts["KV_CACHE_UPDATE"] == 2 * layers
    assert info.plugin_records == layers * len(info.profiles)
    records = find_plugin_records(path.with_suffix(".engine"), "AnchoredAttention", "1", "ai.videoanchor")
    assert len(records) == info.plugin_records
    assert all(record.fields == {"scale": (0.125,), "is_causal": (1,)} for record in records)
    assert info.size_bytes == path.with_suffix(".engine").stat().st_size > 100_000
    assert (info.flavor, info.version, info.targets) == ("tensorrt-rtx", rtx.version, targets)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_native_attention_builds_without_a_plugin(
    rtx: TensorRT, decoder_ranges: Profiles, tmp_path: Path, dtype: str
) -> None:
    path = save_decoder(DecoderShape(head_dim=64, dtype=dtype), tmp_path / "decoder.onnx")
    info = _build(path, decoder_ranges, attention="native")
    assert info.layer_counts["ATTENTION_INPUT"] == 2
    assert "PLUGIN_V3" not in info.layer_counts
    assert info.plugin_nodes == () and info.plugin_records == 0
    assert find_plugin_records(path.with_suffix(".engine"), "AnchoredAttention", "1", "ai.videoanchor") == ()


def test_only_whole_engines_appear(rtx: TensorRT, decoder_ranges: Profiles, tmp_path: Path) -> None:
    # Turing has no float32 products in RTX: the builder fails after parsing.
    path = save_decoder(DecoderShape(dtype="float32"), tmp_path / "decoder.onnx")
    with refused(path, "FP32 GEMM", "sm75", fix=False):
        _build(path, decoder_ranges, attention="native", targets=("sm75",))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["decoder.onnx", "decoder.onnx.data"]


def test_a_rebuild_replaces_the_engine(rtx: TensorRT, decoder_ranges: Profiles, tmp_path: Path) -> None:
    path = save_decoder(DecoderShape(layers=1, dtype="float16"), tmp_path / "decoder.onnx")
    engine = path.with_suffix(".engine")
    engine.write_bytes(b"old")
    info = _build(path, decoder_ranges, attention="native")
    assert engine.stat().st_size == info.size_bytes > 3
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


def test_the_parser_is_quoted(rtx: TensorRT, tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 24]>
        g (string[n] x) => (string[n] y) { y = StringNormalizer (x) }""")
    onnx.save(model, tmp_path / "strings.onnx")
    with refused(tmp_path / "strings.onnx", "StringNormalizer", fix=False):
        _build(tmp_path / "strings.onnx", {"p": {"n": DimensionRange(1, 1, 2)}})


def test_missing_weights_are_an_error(rtx: TensorRT, decoder_ranges: Profiles, tmp_path: Path) -> None:
    path = save_decoder(DecoderShape(), tmp_path / "decoder.onnx")
    (tmp_path / "decoder.onnx.data").unlink()
    with refused(path, fix=False):
        _build(path, decoder_ranges, attention="native")


def test_progress_is_told(rtx: TensorRT, decoder_ranges: Profiles, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    path = save_decoder(DecoderShape(layers=1, dtype="float16"), tmp_path / "decoder.onnx")
    _build(path, decoder_ranges, attention="native", on_progress=lambda *call: calls.append(call))
    building = [(done, total) for phase, done, total in calls if phase == "Building engine"]
    assert building[0][0] == 0 and building[-1][0] == building[-1][1] > 0
    assert building == sorted(building)


def test_static_models_need_no_profile(rtx: TensorRT, tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 24]>
        g (float16[2,8] x) => (float16[2,8] y) { y = Relu (x) }""")
    onnx.save(model, tmp_path / "relu.onnx")
    info = _build(tmp_path / "relu.onnx", {"p": {"n": DimensionRange(1, 1, 2)}})
    assert info.profiles == () and info.layer_counts == {"ACTIVATION": 1}


def test_the_decode_profile_costs_no_second_copy_of_the_weights(
    rtx: TensorRT, components: dict[str, Component], tmp_path: Path
) -> None:
    shape = DecoderShape(layers=1, query_heads=16, kv_heads=16, head_dim=128, dtype="float16")
    path = save_decoder(shape, tmp_path / "decoder.onnx")
    weights = (tmp_path / "decoder.onnx.data").stat().st_size
    limits = Limits(
        max_batch_size=1,
        max_input_len=64,
        max_kv_cache_capacity=96,
        max_frames=4,
        opt_input_len=32,
        opt_frames=2,
    )
    ranges = components["decoder"].ranges(limits)
    size = _build(path, ranges, attention="native").size_bytes
    assert weights < size < 1.25 * weights
    # What it would be if the profile held one token and nothing else.
    ranges["decode"]["sequence"] = DimensionRange(1, 1, 1)
    assert _build(path, ranges, attention="native").size_bytes > 1.75 * weights
