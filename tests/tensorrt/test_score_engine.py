"""The score's graph in TensorRT-RTX's parser and builder, from its body and for a plugin."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from va_export.graph.score import score_model
from va_export.settings import Limits, ScoreSettings
from va_export.tensorrt.api import TensorRT
from va_export.tensorrt.build import build_engine
from va_export.tensorrt.engine_info import BuildRequest
from va_export.tensorrt.prepare_onnx import prepare_onnx
from va_export.tensorrt.profiles import dimension_ranges

LIMITS = Limits(max_input_len=256, max_kv_cache_capacity=256, opt_input_len=64, max_frames=8, opt_frames=4)


def save(settings: ScoreSettings, path: Path, hidden_size: int = 48, tuned_tokens: int = 64) -> Path:
    onnx.save(score_model(settings, hidden_size, tuned_tokens), path)
    return path


@pytest.mark.parametrize(("pca_rank", "hidden_size"), [(0, 128), (0, 16), (12, 128)])  # wide, narrow, PCA
def test_the_body_builds(rtx: TensorRT, tmp_path: Path, pca_rank: int, hidden_size: int) -> None:
    path = save(ScoreSettings(5, pca_rank), tmp_path / "score.onnx", hidden_size)
    ranges = dimension_ranges("score", LIMITS, tokens_per_frame=16)
    info = build_engine(BuildRequest(path, "tensorrt-rtx", ("sm89",), ranges, "native"), tmp_path / "score.engine")
    assert info.plugin_nodes == () and info.size_bytes > 0
    assert info.input_shapes == {"visual_tokens": ("visual_count", hidden_size)}
    (profile,) = info.profiles
    shapes = profile.ranges["visual_tokens"]
    assert [shape[0] for shape in (shapes.min, shapes.opt, shapes.max)] == [16, 64, 128]
    assert info.layer_counts["TRIP_LIMIT"] >= 8  # the loops are loops: not unrolled, not folded away


def test_a_plugin_takes_the_node_and_the_body_goes(tmp_path: Path) -> None:
    path = save(ScoreSettings(5), tmp_path / "score.onnx")
    prepared = prepare_onnx(path, attention="plugin", capacity=None, has_plugin=lambda name: name == "SubspaceScore")
    model = onnx.load_model_from_string(prepared.model_bytes)
    assert [node.op_type for node in prepared.plugin_nodes] == ["SubspaceScore"] and not model.functions
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in model.graph.node[0].attribute}
    assert (attributes["plugin_version"], attributes["plugin_namespace"]) == (b"1", b"ai.videoanchor")
    assert attributes["n_subspaces"] == 5 and attributes["eps"] == pytest.approx(2e-4)


def test_without_a_plugin_the_body_stays(tmp_path: Path) -> None:
    path = save(ScoreSettings(5), tmp_path / "score.onnx")
    prepared = prepare_onnx(path, attention="plugin", capacity=None, has_plugin=lambda _: False)
    assert prepared.plugin_nodes == ()
    assert [body.name for body in onnx.load_model_from_string(prepared.model_bytes).functions] == ["SubspaceScore"]


def test_the_form_follows_the_shapes() -> None:
    """More features than tokens make no [features, features] matrix: the body lacks the other form's product."""

    def sizes(model: onnx.ModelProto) -> int:
        return len(model.functions[0].node)

    narrow, wide = score_model(ScoreSettings(5), 16, 64), score_model(ScoreSettings(5), 128, 64)
    assert sizes(narrow) != sizes(wide)
    assert sizes(score_model(ScoreSettings(5), 4096, 2048)) == sizes(wide)
    with_pca = score_model(ScoreSettings(5, 64), 4096, 2048)
    assert sizes(with_pca) > sizes(narrow)
