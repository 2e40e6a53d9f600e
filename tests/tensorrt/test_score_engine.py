"""The score's graph in TensorRT-RTX's parser and builder, from its body and for a plugin."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from va_export.graph.score import score_model
from va_export.models.component import Component, score_component
from va_export.models.family import ModelSpec
from va_export.settings import Limits, ScoreSettings
from va_export.tensorrt.api import TensorRT
from va_export.tensorrt.build import build_engine
from va_export.tensorrt.engine_info import BuildRequest
from va_export.tensorrt.prepare_onnx import prepare_onnx

LIMITS = Limits(max_input_len=256, max_kv_cache_capacity=256, opt_input_len=64, max_frames=8, opt_frames=4)


def component(spec: ModelSpec, hidden_size: int = 48) -> Component:
    """The score of a model of this width with 16 visual tokens a frame, of at least 12."""
    resized = replace(spec, text=replace(spec.text, hidden_size=hidden_size))
    return score_component(resized, lambda frames: 16 * frames, ScoreSettings(n_subspaces=5, pca_rank=12))


def save(score: Component, settings: ScoreSettings, path: Path) -> Path:
    onnx.save(score_model(score, settings, 64), path)
    return path


@pytest.mark.parametrize(("pca_rank", "hidden_size"), [(0, 128), (0, 16), (12, 128)])  # wide, narrow, PCA
def test_the_body_builds(rtx: TensorRT, spec: ModelSpec, tmp_path: Path, pca_rank: int, hidden_size: int) -> None:
    score = component(spec, hidden_size)
    path = save(score, ScoreSettings(n_subspaces=5, pca_rank=pca_rank), tmp_path / "score.onnx")
    request = BuildRequest(path, "tensorrt-rtx", ("sm89",), score.ranges(LIMITS), "native")
    info = build_engine(request, tmp_path / "score.engine")
    assert info.plugin_nodes == () and info.size_bytes > 0
    assert info.input_shapes == {"visual_tokens": ("visual_count", hidden_size)}
    (profile,) = info.profiles
    shapes = profile.ranges["visual_tokens"]
    assert [shape[0] for shape in (shapes.min, shapes.opt, shapes.max)] == [12, 64, 128]
    assert info.layer_counts["TRIP_LIMIT"] >= 8  # the loops are loops: not unrolled, not folded away


def test_a_plugin_takes_the_node_and_the_body_goes(spec: ModelSpec, tmp_path: Path) -> None:
    path = save(component(spec), ScoreSettings(5), tmp_path / "score.onnx")
    prepared = prepare_onnx(path, attention="plugin", capacity=None, has_plugin=lambda name: name == "SubspaceScore")
    model = onnx.load_model_from_string(prepared.model_bytes)
    assert [node.op_type for node in prepared.plugin_nodes] == ["SubspaceScore"] and not model.functions
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in model.graph.node[0].attribute}
    assert (attributes["plugin_version"], attributes["plugin_namespace"]) == (b"1", b"ai.videoanchor")
    assert attributes["n_subspaces"] == 5 and attributes["eps"] == pytest.approx(2e-4)


def test_without_a_plugin_the_body_stays(spec: ModelSpec, tmp_path: Path) -> None:
    path = save(component(spec), ScoreSettings(5), tmp_path / "score.onnx")
    prepared = prepare_onnx(path, attention="plugin", capacity=None, has_plugin=lambda _: False)
    assert prepared.plugin_nodes == ()
    assert [body.name for body in onnx.load_model_from_string(prepared.model_bytes).functions] == ["SubspaceScore"]


def test_the_form_follows_the_shapes(spec: ModelSpec) -> None:
    """More features than tokens make no [features, features] matrix: the body lacks the other form's product."""

    def size(hidden_size: int, tokens: int, pca_rank: int = 0) -> int:
        model = score_model(component(spec, hidden_size), ScoreSettings(5, pca_rank), tokens)
        return len(model.functions[0].node)

    narrow, wide = size(16, 64), size(128, 64)
    assert narrow != wide
    assert size(4096, 2048) == wide
    assert size(4096, 2048, pca_rank=64) > narrow
