"""The exported tower against Hugging Face's own forward, where windows and grids are ragged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
import torch

from va_export.checkpoint.files import Checkpoint
from va_export.graph.trace import FakeModel
from va_export.models import family_for
from va_export.models.component import score_component
from va_export.models.parameters import load_model
from va_export.models.qwen2_5_vl.vision import VisionGraph, reference_tokens, vision_component
from va_export.passes import run_passes
from va_export.passes.lower_anchored_attention import lower_anchored_attention
from va_export.runtime.processing import Image, Video
from va_export.settings import Limits, ScoreSettings

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "qwen2_5_vl_tiny"


@pytest.fixture(scope="module")
def made() -> tuple[Any, Any, Any, Checkpoint]:
    checkpoint = Checkpoint.open(GOLDEN)
    family = family_for(checkpoint.config)
    spec = family.spec_from_config(checkpoint.config)
    return family, spec, load_model(family, spec, checkpoint), checkpoint


@pytest.mark.parametrize(
    "sizes",
    [
        [(4, 112, 224)],  # whole windows
        [(3, 140, 196)],  # 5 × 7 tokens: windows cut off on both sides, an odd frame
        [(2, 28, 28)],
        [(4, 84, 252), (0, 168, 112), (2, 56, 56)],  # two videos and an image
    ],
)
def test_ragged_rows_are_the_windows_of_the_original(made: Any, sizes: list[tuple[int, int, int]]) -> None:
    family, spec, model, checkpoint = made
    processing = family.processing(spec, checkpoint)
    random = np.random.default_rng(0)

    def pixels(*shape: int) -> np.ndarray:
        return random.integers(0, 256, (*shape, 3), dtype=np.uint8)

    media = [Video(pixels(*size)) if size[0] else Image(pixels(*size[1:])) for size in sizes]
    as_they_are = msgspec.structs.replace(processing, video_pixels=(1, 1 << 20), image_pixels=(1, 1 << 20))
    inputs = as_they_are.vision_inputs(media)
    component = vision_component(spec)
    tensors = [torch.from_numpy(inputs[tensor.name]) for tensor in component.inputs]
    with torch.no_grad():
        ours, theirs = VisionGraph(model)(*tensors), reference_tokens(model, tensors)
    assert ours.shape == theirs.shape
    # float32; sums of the same terms in another order, four blocks deep, values of order 1
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=0, atol=1e-5)


def test_no_mask_over_all_patches_is_in_the_graph(made: Any) -> None:
    """Every value's size is linear in the patches; logits belong to the op. In the form without the op, windows have a
    bias of a window's size, and only grids one of a grid's."""
    family, spec, _, _ = made
    graph = run_passes(FakeModel(family, spec, "fp32").trace(vision_component(spec)))
    attentions = [node for node in graph.graph if node.op_type == "AnchoredAttention"]
    assert len(attentions) == spec.vision.num_layers
    windowed = [node for node in attentions if node.inputs[0].shape[2] == 64]  # type: ignore[union-attr,index]
    assert len(windowed) == 2
    for value in (output for node in graph.graph for output in node.outputs):
        assert _powers(value) <= 1, value
    lower_anchored_attention(graph)
    lowered = [node for node in graph.graph if node.op_type == "Attention"]
    lengths = [tuple(node.inputs[place].shape[2] for place in (0, 1)) for node in lowered]  # type: ignore[union-attr,index]
    assert lengths.count((64, 64)) == 2 and len(lengths) == 4  # a window's queries see a window's keys, with their bias
    assert len({id(node.inputs[3]) for node in lowered}) == 2  # one bias for all windows, one for all grids


def _powers(value: ir.Value) -> int:
    """How often the number of patches, or of a grid's, occurs in a shape."""
    return sum("visual_count" in str(dim) or "grid_patches" in str(dim) for dim in value.shape or ())


def test_ranges_hold_what_the_limits_allow(made: Any) -> None:
    _, spec, _, _ = made
    limits = Limits(max_frames=16, opt_frames=8, max_input_len=6400, max_kv_cache_capacity=8192, opt_input_len=4000)
    ranges = vision_component(spec).ranges(limits)["patches"]
    assert (ranges["visual_count"].opt, ranges["visual_count"].max) == (4 * 768, 8 * 768)
    assert (ranges["grids"].max, ranges["grid_patches"].max) == (8, 4 * 2048)
    # Grids of 24 × 32 tokens have 6 × 8 windows, of 27 × 28 tokens 7 × 7.
    assert ranges["windows"].max >= 8 * 49
    score = score_component(spec, spec.vision.visual_tokens, ScoreSettings(n_subspaces=24)).ranges(limits)["tokens"]
    assert score["visual_count"].min == 24  # a clip of small frames has few tokens, and no fewer than subspaces
    short = vision_component(spec).ranges(Limits(max_frames=16, max_input_len=4096))["patches"]
    assert short["visual_count"].max == 4096  # no prompt is longer
