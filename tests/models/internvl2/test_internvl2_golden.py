"""Models read from the original layout reproduce the numbers of the original code (tests/data/golden): InternVL2 over
InternLM2 and Phi-3, InternVL3 over Qwen2.5; and 3.5 over Qwen3, for which the rule was put into transformers' classes.
So do the same weights in transformers' layout, under both kinds of names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers_layout import LAYOUTS, write_in_transformers_layout

from va_export.anchor.hugging_face import anchors
from va_export.checkpoint.files import Checkpoint
from va_export.models import family_for
from va_export.models.family import Choices, ModelSpec
from va_export.models.internvl2.tiles import tiles
from va_export.models.parameters import check_checkpoint, load_model

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
FOLDERS = ("internvl2_tiny", "internvl2_4b_tiny", "internvl3_tiny", "internvl3_5_tiny_not_official")
IN_TRANSFORMERS_LAYOUT = ("internvl2_tiny", "internvl3_tiny", "internvl3_5_tiny_not_official")
CASES = (
    *((name, "original") for name in FOLDERS),
    *((n, layout) for n in IN_TRANSFORMERS_LAYOUT for layout in LAYOUTS),
)
# Golden comes from a CPU in float32; sums of the same terms in another order differ by this much.
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name, layout = request.param
    if layout == "original":
        return GOLDEN / str(name)
    with np.load(GOLDEN / name / "golden.npz") as arrays:
        image_token_id = int(arrays["image_token_id"])
    return write_in_transformers_layout(GOLDEN / name, tmp_path_factory.mktemp(name) / layout, layout, image_token_id)


@pytest.fixture(scope="module")
def golden(folder: Path) -> Mapping[str, np.ndarray]:
    return dict(np.load(folder / "golden.npz"))


@pytest.fixture(scope="module")
def spec(folder: Path, golden: Mapping[str, np.ndarray]) -> ModelSpec:
    checkpoint = Checkpoint.open(folder)
    family = family_for(checkpoint.config)
    return family.spec_from_checkpoint(checkpoint, Choices(image_token_id=int(golden["image_token_id"])))


@pytest.fixture(scope="module")
def model(folder: Path, spec: ModelSpec) -> Iterator[nn.Module]:
    checkpoint = Checkpoint.open(folder)
    family = family_for(checkpoint.config)
    check_checkpoint(family, spec, checkpoint)
    with torch.no_grad():
        yield load_model(family, spec, checkpoint)


def inputs(golden: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(golden[name]) for name in ("input_ids", "pixel_values")}


def close(actual: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=TOLERANCE)


def test_spec_counts_the_golden_tokens(spec: ModelSpec, golden: Mapping[str, np.ndarray]) -> None:
    frames = len(golden["pixel_values"])
    assert tiles(spec).tokens_per_frame * frames == len(golden["visual_tokens"])
    assert int((golden["input_ids"] == spec.image_token_id).sum()) == len(golden["visual_tokens"])


def test_visual_tokens(model: nn.Module, golden: Mapping[str, np.ndarray]) -> None:
    features = model.get_image_features(
        torch.from_numpy(golden["pixel_values"]), vision_feature_layer=-1, vision_feature_select_strategy="default"
    ).pooler_output
    close(features.reshape(golden["visual_tokens"].shape), golden["visual_tokens"])


def test_logits_without_anchors(model: nn.Module, golden: Mapping[str, np.ndarray]) -> None:
    close(model(**inputs(golden)).logits[:, -1], golden["plain_last_logits"])


def test_anchored_prefill_and_greedy_decoding(model: nn.Module, golden: Mapping[str, np.ndarray]) -> None:
    gains = [torch.from_numpy(golden[name]) for name in ("key_log_gain_official", "gain_v")]
    with anchors(model, *gains):
        output = model(**inputs(golden), use_cache=True)
        close(output.logits[:, -32:], golden["prefill_logits"])
        logits = [output.logits[0, -1]]
        for token in golden["tokens"]:
            assert int(logits[-1].argmax()) == token
            step = torch.tensor([[int(token)]])
            output = model(input_ids=step, past_key_values=output.past_key_values, use_cache=True)
            logits.append(output.logits[0, -1])
    close(torch.stack(logits), golden["decode_logits"])


def test_anchors_change_golden_far_beyond_the_tolerance(golden: Mapping[str, np.ndarray]) -> None:
    difference = np.abs(golden["prefill_logits"][0, -1] - golden["plain_last_logits"][0]).max()
    assert difference > 1000 * TOLERANCE


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_other_attentions_give_the_plain_model(
    attention: str, folder: Path, spec: ModelSpec, golden: Mapping[str, np.ndarray]
) -> None:
    checkpoint = Checkpoint.open(folder)
    model = load_model(family_for(checkpoint.config), spec, checkpoint, attention=attention)
    with torch.no_grad():
        close(model(**inputs(golden)).logits[:, -1], golden["plain_last_logits"])


def test_reference_is_loaded_in_the_asked_type(folder: Path, spec: ModelSpec) -> None:
    checkpoint = Checkpoint.open(folder)
    model = load_model(family_for(checkpoint.config), spec, checkpoint, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
